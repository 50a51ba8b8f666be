"""A server on this machine in the place of OpenML."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass(frozen=True)
class Pages:
    """What the server answers by path, and the paths it was asked for.

    ``moved`` names another address by path. ``breaks`` lists, by path, after how many bytes the connection
    breaks, one entry for each answer; then it holds. ``deaf`` are the paths where it ignores a range.
    """

    content: dict[str, bytes] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    breaks: dict[str, list[int]] = field(default_factory=dict)
    deaf: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    address: str = ""


@pytest.fixture
def pages() -> Iterator[Pages]:
    """The server, as long as the test runs."""
    here = Pages()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path
            here.asked.append(path)
            if path in here.moved:
                self.send_response(302)
                self.send_header("Location", here.moved[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = here.content.get(path)
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            here.ranges.append(asked[0] if asked else "")
            start = int(asked[1]) if asked and path not in here.deaf else 0
            partial = body is not None and 0 < start < len(body)
            status = 404 if body is None else 206 if partial else 416 if start else 200
            part = (body or b"")[start:]
            self.send_response(status)
            self.send_header("Content-Length", str(len(part)))
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{len(body or b'') - 1}/{len(body or b'')}")
            self.end_headers()
            cuts = here.breaks.get(path)
            self.wfile.write(part[: cuts.pop(0)] if cuts else part)

        def log_message(self, format: str, *_: object) -> None:
            del format  # pytest's output is no place for a log

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Pages(
            here.content,
            here.moved,
            here.breaks,
            here.deaf,
            here.asked,
            here.ranges,
            f"http://127.0.0.1:{server.server_port}",
        )
        server.shutdown()
        thread.join()
