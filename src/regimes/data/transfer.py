"""Bytes from an address into a file: by https alone, no more than expected, taken up again where it broke."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from regimes.core.error import UserError

__all__ = ["BY_HAND", "FAILURES", "Source", "ask", "check_address", "retrieve", "unreachable"]

TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20
BY_HAND = "put the published files into the data directory yourself"
FAILURES = (OSError, http.client.HTTPException, UnicodeError)
LOCAL = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Source:
    """A file to be had: its address, its md5, the bytes that it can have, whose it is, and which server named it."""

    url: str
    md5: str
    most: int
    title: str
    server: str


def retrieve(source: Source, path: Path, progress: bool = True) -> None:
    """Write a file to ``path``, with a progress bar, and compare its md5.

    What is at ``path`` is the beginning of an earlier download: the rest is asked for. Where the connection
    breaks, it is taken up again, as long as that gains a byte. What is left after an error can be resumed.

    Raises:
        UserError: if the connection fails, more bytes come than it can have, or the checksum is another.
    """
    fresh = not path.exists()
    while True:
        start = path.stat().st_size if path.exists() else 0
        try:
            download(source, path, start, progress)
        except BrokenError as broken:
            if path.exists() and path.stat().st_size > start:
                continue
            raise unreachable(source.url, broken.cause) from broken.cause
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 == source.md5:
            return
        path.unlink()
        if fresh:
            raise UserError(
                f"`name`: {source.url} came truncated or altered: md5 expected {source.md5}, found {md5}; "
                f"fetch it again, or {BY_HAND}"
            )
        fresh = True  # what was there before was no beginning of this file


class BrokenError(Exception):
    """The connection failed; never leaves this file."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def download(source: Source, path: Path, start: int, progress: bool) -> None:
    """The bytes from ``start`` on, added to the file; all of them where the server does not count bytes."""
    try:
        answer = ask(source.url, source.server, start)
    except urllib.error.HTTPError as error:
        if not start or error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise BrokenError(error) from error
        error.close()
        return  # there is no more: the checksum says whether that is all
    except FAILURES as error:
        raise BrokenError(error) from error
    with answer:
        resumed = answer.status == http.client.PARTIAL_CONTENT and answer.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {start}-")
        begun = start if resumed else 0
        total = None if answer.length is None else begun + answer.length
        with path.open("ab" if resumed else "wb") as file:
            for block in watched(answer, begun, total, source.title, progress):
                file.write(block)
                if file.tell() > source.most:
                    path.unlink()
                    raise UserError(
                        f"`server`: {source.url} sends more than {source.most} bytes, expected at most that "
                        f"for {source.title}; {BY_HAND}"
                    )


def ask(url: str, server: str, start: int = 0) -> http.client.HTTPResponse:
    """Open an address, after a check of it and of any it leads to."""
    check_address(url, server)
    headers = {"Range": f"bytes={start}-"} if start else {}
    request = urllib.request.Request(url, headers=headers)
    return urllib.request.build_opener(Redirects(server)).open(request, timeout=TIMEOUT)


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows an answer to another address, if that is one to follow."""

    def __init__(self, server: str) -> None:
        self.server = server

    def redirect_request(self, *args: Any) -> urllib.request.Request | None:
        """The request for the new address, which comes last."""
        try:
            check_address(args[-1], self.server)
        except UserError:
            args[1].close()  # the answer that led there
            raise
        return super().redirect_request(*args)


def check_address(url: str, server: str) -> None:
    """Raise unless the address is an https one, or both it and the server are on this machine.

    What comes by http can be read and replaced on its way; a file is none of the server's business.
    """
    try:
        parts, named = urllib.parse.urlsplit(url), urllib.parse.urlsplit(server)
        local = all(one.scheme == "http" and one.hostname in LOCAL for one in (parts, named))
    except ValueError:
        parts, local = None, False
    if parts is None or not (local or (parts.scheme == "https" and parts.hostname)):
        raise UserError(
            f"`server`: the address {url} came, expected one that begins with https://; {BY_HAND}"
        )


def watched(
    answer: http.client.HTTPResponse, begun: int, total: int | None, title: str, progress: bool
) -> Iterator[bytes]:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not progress, transient=True
    ) as bar:
        task = bar.add_task(title, total=total or None, completed=begun)
        came = begun
        while True:
            try:
                block = answer.read(BLOCK)
            except FAILURES as error:
                raise BrokenError(error) from error
            if not block:
                break
            came += len(block)
            bar.update(task, advance=len(block))
            yield block
        if total is not None and came < total:
            raise BrokenError(ConnectionError(f"{came} of {total} bytes came"))


def unreachable(url: str, error: Exception) -> UserError:
    """What to tell of an address that gave nothing."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
    return UserError(f"`server`: {url} cannot be read ({error}); check the connection, or {BY_HAND}")
