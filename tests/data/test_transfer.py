"""A download goes on where it broke, takes no more than there can be, and stays with https."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path

import numpy as np
import pytest

from regimes.core.error import UserError
from regimes.data import transfer
from regimes.data.transfer import Source, ask, check_address, retrieve
from tests.data.conftest import Pages

CONTENT = np.random.default_rng(0).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
CUT = 1_200_000


def source(pages: Pages, md5: str = MD5, most: int = len(CONTENT)) -> Source:
    return Source(f"{pages.address}/there", md5, most, "Images", pages.address)


@pytest.fixture(autouse=True)
def there(pages: Pages) -> None:
    pages.content["/there"] = CONTENT


@pytest.mark.parametrize("progress", [True, False])
def test_what_is_retrieved_is_what_is_there(progress: bool, pages: Pages, tmp_path: Path) -> None:
    retrieve(source(pages), tmp_path / "here", progress)
    assert (tmp_path / "here").read_bytes() == CONTENT


def test_another_checksum_is_refused(pages: Pages, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=f"truncated or altered: md5 expected {'0' * 32}, found {MD5}; fetch it again"
    ):
        retrieve(source(pages, "0" * 32), tmp_path / "here", False)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("deaf", [False, True], ids=["resumes", "starts again"])
def test_a_broken_connection_is_taken_up_again(deaf: bool, pages: Pages, tmp_path: Path) -> None:
    pages.breaks["/there"] = [CUT, 2 * CUT if deaf else CUT]
    if deaf:
        pages.deaf.add("/there")
    retrieve(source(pages), tmp_path / "here", False)
    assert (tmp_path / "here").read_bytes() == CONTENT
    assert pages.ranges == ["", f"bytes={CUT}-", f"bytes={2 * CUT}-"]


def test_what_an_earlier_download_left_is_not_sent_again(pages: Pages, tmp_path: Path) -> None:
    pages.breaks["/there"] = [CUT, 0]
    with pytest.raises(UserError, match=r"/there cannot be read \(.*; check the connection"):
        retrieve(source(pages), tmp_path / "here", False)
    assert (tmp_path / "here").read_bytes() == CONTENT[:CUT]
    retrieve(source(pages), tmp_path / "here", False)
    assert (tmp_path / "here").read_bytes() == CONTENT
    assert pages.ranges[-1] == f"bytes={CUT}-"


@pytest.mark.parametrize(
    "left", [b"x" * CUT, CONTENT + b"x", b"x" * len(CONTENT)], ids=["part", "more", "as much"]
)
def test_what_was_left_of_something_else_is_replaced(left: bytes, pages: Pages, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(left)
    retrieve(source(pages, most=2 * len(CONTENT)), tmp_path / "here", False)
    assert (tmp_path / "here").read_bytes() == CONTENT


def test_what_was_left_whole_is_taken(pages: Pages, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(CONTENT)
    retrieve(source(pages), tmp_path / "here", False)
    assert (tmp_path / "here").read_bytes() == CONTENT


def test_no_more_is_taken_than_there_can_be(pages: Pages, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="/there sends more than 2000000 bytes, expected at most that for Images"
    ):
        retrieve(source(pages, most=2_000_000), tmp_path / "here", False)
    assert not (tmp_path / "here").exists()


def test_a_server_that_says_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=r"cannot be read \(.*timed out.*\); check the connection"):
            retrieve(Source(address, MD5, 1, "Images", address), tmp_path / "here", False)


@pytest.mark.parametrize("to", ["http://example.org/there", "file:///etc/passwd", "ftp://example.org/there"])
def test_an_answer_does_not_lead_away_from_https(to: str, pages: Pages, tmp_path: Path) -> None:
    pages.moved["/there"] = to
    with pytest.raises(
        UserError, match=f"address {to} came, expected one that begins with https|is not allowed"
    ):
        retrieve(source(pages), tmp_path / "here", False)


def test_an_answer_may_lead_elsewhere_on_this_machine(pages: Pages, tmp_path: Path) -> None:
    pages.moved["/elsewhere"] = f"{pages.address}/there"
    with ask(f"{pages.address}/elsewhere", pages.address) as answer:
        assert answer.read() == CONTENT


@pytest.mark.parametrize("server", ["https://www.openml.org", "http://mirror.example.org", "ftp://127.0.0.1"])
@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x", "http://mirror.example.org/x", "HTTP://www.openml.org"]
)
def test_http_is_for_this_machine_alone(url: str, server: str) -> None:
    with pytest.raises(UserError, match="expected one that begins with https://"):
        check_address(url, server)
    check_address("https://elsewhere.example.org/x", server)
