"""A kernel in a file is the one that was asked for, to the last number, or the call says what is wrong with it."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from regimes import measure
from regimes.core.error import UserError
from regimes.kernel import file as kernel_file
from regimes.kernel.fingerprint import Fingerprint
from regimes.kernel.journal import Journal
from regimes.measure import Reduce
from tests import reference
from tests.kernel.limits import least_memory
from tests.measure.awkward_case import F64, D, Net, normal
from tests.properties import assert_close

REDUCTIONS: tuple[Reduce, ...] = get_args(Reduce)
X = normal(D)(6)


def network(outputs: int = 2) -> Any:
    torch.manual_seed(0)
    return Net(
        lambda net, x: net.head(net.first(x).tanh()) * net.t,
        first=nn.Linear(D, 3), head=nn.Linear(3, outputs), t=1.0,
    ).to(F64)  # fmt: skip


class StoppedError(Exception):
    """What kills a call in the tests."""


@contextmanager
def stopped_after(tiles: int) -> Iterator[None]:
    """A call inside the block dies when it has written so many tiles."""
    put, left = kernel_file.KernelFile.put, [tiles]

    def counted(*args: Any) -> Journal:
        if not left[0]:
            raise StoppedError
        left[0] -= 1
        return put(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(kernel_file.KernelFile, "put", counted)
        yield


def begun(path: Path) -> None:
    """A file with some of its tiles."""
    with stopped_after(2):
        measure.ntk(network(), X, out=path, memory=4 * least_memory(network(), X))


def journal_of(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def noted(path: Path, **values: Any) -> None:
    """Entries of the journal are replaced."""
    journal = journal_of(path)
    journal.write_text(json.dumps({**json.loads(journal.read_text()), **values}))


def saved(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Any]:
    return lambda path: np.save(path, change(np.load(path)))


def flipped(path: Path) -> None:
    """One bit of the first number that is written."""
    content = bytearray(path.read_bytes())
    content[128 + 5] ^= 1
    path.write_bytes(bytes(content))


def folder(path: Path) -> None:
    journal_of(path).unlink()
    journal_of(path).mkdir()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "zeros": saved(np.zeros_like),
    "another shape": saved(lambda k: k[:-1]),
    "another precision": saved(lambda k: k.astype(np.float32)),
    "another order of axes": saved(np.asfortranarray),
    "objects": saved(lambda k: k.astype(object)),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 8),
    "empty": lambda path: os.truncate(path, 0),
    "one bit": flipped,
    "text": lambda path: path.write_text("a kernel"),
    "no journal": lambda path: journal_of(path).unlink(),
    "journal cut": lambda path: os.truncate(journal_of(path), 40),
    "journal of bytes": lambda path: journal_of(path).write_bytes(b"\xff\xfe{"),
    "journal is a folder": folder,
    "journal is a list": lambda path: journal_of(path).write_text("[]"),
    "journal nested": lambda path: journal_of(path).write_text("[" * 100_000),
    "journal of the version before": lambda path: journal_of(path).write_text('{"kernel": "a", "done": []}'),
    "journal of a later version": lambda path: noted(path, format=99),
    "other tiles": lambda path: noted(path, done=[[0, 6, 0, 6, 0, 2, 0, 2, 12345]]),
    "tiles outside": lambda path: noted(path, done=[[0, 6, 0, 60, 0, 2, 0, 2, 0], [7, 9, 7, 9, 0, 2, 0, 2, 1]]),
    "odd tiles": lambda path: noted(path, done=[[0, 6, 5]]),
    "tiles of words": lambda path: noted(path, done=["abc"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a whole kernel and one that is begun."""
    folder = tmp_path_factory.mktemp("kernels")
    measure.ntk(network(), X, out=folder / "whole.npy")
    begun(folder / "begun.npy")
    return folder


@pytest.mark.parametrize("state", ["whole", "begun"])
@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_damaged_is_refused_and_kept(name: str, state: str, kernels: Path, tmp_path: Path) -> None:
    path = tmp_path / "kernel.npy"
    shutil.copy(kernels / f"{state}.npy", path)
    shutil.copy(kernels / f"{state}.npy.json", journal_of(path))
    DAMAGES[name](path)
    content = path.read_bytes()
    with pytest.raises(UserError, match=r"^`out`: .*overwrite=True$"):
        measure.ntk(network(), X, out=path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["zeros", "empty", "no journal", "journal of a later version"])
def test_what_is_damaged_may_be_overwritten(name: str, kernels: Path, tmp_path: Path) -> None:
    path = tmp_path / "kernel.npy"
    shutil.copy(kernels / "whole.npy", path)
    shutil.copy(kernels / "whole.npy.json", journal_of(path))
    DAMAGES[name](path)
    assert torch.equal(
        measure.ntk(network(), X, out=path, overwrite=True), torch.from_numpy(np.load(kernels / "whole.npy"))
    )


def test_a_file_without_its_numbers_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "kernel.npy"
    expected = measure.ntk(network(), X, out=path).clone()
    path.unlink()
    assert torch.equal(measure.ntk(network(), X, out=path), expected)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_goes_on_with_other_memory(reduce: Reduce, tmp_path: Path) -> None:
    """Tiles of another size overlap those that are there; what is verified is what was written last."""
    module, path, x = network(3), tmp_path / "kernel.npy", X[:4]
    expected, least = measure.ntk(module, x, reduce=reduce), least_memory(module, x, reduce=reduce)
    for memory, more in ((2 * least, 1), (least + 300, 1), (2 * least, 0)):
        with stopped_after(more):
            measure.ntk(module, x, reduce=reduce, out=path, memory=memory)
    for memory in (3 * least, None):
        assert_close(measure.ntk(module, x, reduce=reduce, out=path, memory=memory), expected)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_the_least_memory_gives_the_kernel(reduce: Reduce, tmp_path: Path) -> None:
    """So little that not even the outputs of a sample are taken together: a trace sums over them."""
    module, path, x = network(5), tmp_path / "kernel.npy", X[:3]
    expected, least = measure.ntk(module, x, reduce=reduce), least_memory(module, x, reduce=reduce)
    for memory in (least + 300, 3 * least):
        found = measure.ntk(module, x, reduce=reduce, out=path, memory=memory, overwrite=True)
        assert_close(found, expected)


def times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda out: out * factor


OTHERS: dict[str, Callable[[Path], Any]] = {
    "attribute": lambda path: measure.ntk(changed(network(), lambda net: setattr(net, "t", 2.0)), X, out=path),
    "hook": lambda path: measure.ntk(
        changed(network(), lambda net: net.first.register_forward_hook(lambda m, x, out: out.sin())), X, out=path
    ),
    "frozen": lambda path: measure.ntk(changed(network(), lambda net: net.first.requires_grad_(False)), X, out=path),
    "closure": lambda path: measure.ntk(network(), X, out=path, output=times(2.0)),
    "gradient alone": lambda path: measure.ntk(
        network(), X, out=path, output=lambda out: out.detach() + 2 * (out - out.detach())
    ),
    "parameter": lambda path: measure.ntk(changed(network(), nudged), X, out=path),
    "samples": lambda path: measure.ntk(network(), X.flip(0), out=path),
    "rectangle": lambda path: measure.ntk(network(), X, X.clone(), out=path),
    "form": lambda path: measure.ntk(network(), X, out=path, reduce="trace"),
}  # fmt: skip


def changed(net: Any, change: Callable[[Any], Any]) -> Any:
    change(net)
    return net


def nudged(net: Any) -> None:
    with torch.no_grad():
        net.head.bias += 1e-14


@pytest.mark.parametrize("name", OTHERS)
def test_another_kernel_is_seen(name: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel.npy"
    expected = measure.ntk(network(), X, out=path, output=times(1.0)).clone()
    with pytest.raises(UserError, match=r"^`out`: '.*kernel.npy' holds another kernel .*overwrite=True$"):
        OTHERS[name](path)
    # The same kernel of other objects is no other kernel.
    assert torch.equal(measure.ntk(network(), X, out=path, output=times(1.0)), expected)


def test_rounding_makes_no_other_kernel() -> None:
    one = Fingerprint("a", (1.0, 2.0, -0.0, 3.0), (5.0, 0.0), 1e-8)
    assert one.matches(one)
    assert one.matches(replace(one, outputs=(1.0 + 1e-9, 2.0, 1e-9, 3.0), gradients=(5.0, 1e-9)))
    assert not one.matches(replace(one, digest="b"))
    assert not one.matches(replace(one, outputs=(1.0 + 1e-6, 2.0, 0.0, 3.0)))
    assert not one.matches(replace(one, gradients=(5.0, 1e-6)))
    assert not one.matches(replace(one, outputs=one.outputs[:2]))
    assert not one.matches(replace(one, gradients=(float("nan"), 0.0)))


def refuse(code: int) -> Callable[..., None]:
    def call(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    return call


def assert_told(path: Path, told: str) -> None:
    """One line, and nothing left behind."""
    with pytest.raises(UserError, match=f"^`out`: '.*kernel.npy' {told}") as caught:
        measure.ntk(network(), X, out=path)
    assert "\n" not in str(caught.value)
    assert list(path.parent.iterdir()) == []


BYTES = 6 * 6 * 2 * 2 * 8


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_before_anything_is_computed(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", refuse(code), raising=False)
    assert_told(tmp_path / "kernel.npy", rf"takes {BYTES} bytes, and \d+ are free there")


@pytest.mark.parametrize("reserves", [True, False])
def test_space_is_taken_where_the_system_sets_a_limit(
    reserves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files, with and without a call that reserves space."""
    if not reserves:
        monkeypatch.setattr(os, "posix_fallocate", refuse(errno.EOPNOTSUPP), raising=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES // 2, hard))
    try:
        assert_told(tmp_path / "kernel.npy", f"takes {BYTES} bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = measure.ntk(network(), X, out=tmp_path / "kernel.npy")
    assert torch.equal(found, measure.ntk(network(), X))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.open", refuse(errno.EACCES))
    assert_told(tmp_path / "kernel.npy", "cannot be used")


def test_a_name_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^`out`: .* cannot be used"):
        measure.ntk(network(), X, out=tmp_path / ("k" * 300 + ".npy"))


def test_what_stops_the_call_first_keeps_the_file(tmp_path: Path) -> None:
    """With overwrite=True, too: a mistake in the other arguments costs no kernel."""
    path = tmp_path / "kernel.npy"
    expected = measure.ntk(network(), X, out=path).clone()
    with pytest.raises(UserError, match=r"^`memory`"):
        measure.ntk(network(), X, out=path, overwrite=True, memory=1)
    with pytest.raises(UserError, match=r"^`output`"):
        measure.ntk(network(), X, out=path, overwrite=True, output=torch.sum)
    assert torch.equal(measure.ntk(network(), X, out=path), expected)


def jumping(net: Any, x: Tensor) -> Tensor:
    """Far out it takes another way, which no watch over torch sees beforehand."""
    h = net.first(x)
    return net.head(h.tanh() if x.detach().numpy().max() < 5 else net.second(h).tanh())


@pytest.mark.parametrize("stop", [None, 2])
def test_a_network_that_leaves_its_plan_in_some_tiles(stop: int | None, tmp_path: Path) -> None:
    """The kernel is begun again by rows of the Jacobian, with equal bits, also where the call was killed between."""
    torch.manual_seed(0)
    layers = {"first": nn.Linear(D, 3), "second": nn.Linear(3, 3), "head": nn.Linear(3, 2)}
    module: Any = Net(jumping, **layers).to(F64)
    x = torch.cat([X[:3].clamp(-1, 1), X[:1] * 0 + 9])
    memory = 4 * least_memory(module, x)
    whole = measure.ntk(module, x, memory=memory)
    assert torch.equal(measure.ntk(module, x, memory=memory), whole)
    expected = reference.kernel(module, x, x)
    assert_close(whole, torch.stack(list(expected.values())).sum(0))
    path, again = tmp_path / "kernel.npy", tmp_path / "again.npy"
    if stop is not None:
        with stopped_after(stop):
            measure.ntk(module, x, memory=memory, out=path)
    found = measure.ntk(module, x, memory=memory, out=path)
    assert_close(found, whole)
    assert torch.equal(found, measure.ntk(module, x, memory=memory, out=again))
    journal = Journal.read(journal_of(path))
    assert journal is not None and journal.by_rows
