"""The page in a real browser: no error, every picture shown, no request, no overflow on a phone."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

from tests.report import pages

pytestmark = pytest.mark.browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
CHECK = """
const pictures = [...document.images].map(image => {
  const box = image.getBoundingClientRect();
  return {loaded: image.complete && image.naturalWidth > 0, width: box.width, height: box.height};
});
const strips = [...document.querySelectorAll("svg")].map(svg => {
  const box = svg.getBoundingClientRect();
  return {loaded: true, width: box.width, height: box.height};
});
const root = document.documentElement;
const outside = [...document.querySelectorAll("main *")].filter(element => {
  const box = element.getBoundingClientRect();
  return box.width > 0 && box.right > root.clientWidth + 1 && !element.closest(".scroll, thead");
}).map(element => element.tagName + "." + element.className + ": " + element.textContent.slice(0, 40));
const loaded = performance.getEntriesByType("resource").map(entry => entry.name);
return {pictures, strips, outside, wide: root.scrollWidth, seen: root.clientWidth,
  ground: getComputedStyle(document.body).backgroundColor,
  loaded: loaded.filter(name => !name.startsWith("data:"))};
"""


class Session:
    """One browser, spoken to over the plain HTTP of WebDriver."""

    def __init__(self, port: int, profile: Path) -> None:
        # The request stays on this machine, whatever proxy the environment names.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._root = f"http://127.0.0.1:{port}"
        options = {"args": [*FLAGS, f"--user-data-dir={profile}"], "binary": BROWSER}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": logs}
        self._path = ""
        self._path = (
            "/session/"
            + self.call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        )

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._root + self._path + path, data, {"Content-Type": "application/json"}, method=method
        )
        with self._opener.open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def devtools(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self, kind: str) -> list[dict[str, Any]]:
        return self.call("POST", "/se/log", {"type": kind})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    if BROWSER is None or DRIVER is None:
        pytest.skip("no browser: install chromium and chromedriver")
    folder = tmp_path_factory.mktemp("browser")
    # Port 0: the driver takes a free one and names it.
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([DRIVER, "--port=0"], stdout=log, stderr=subprocess.STDOUT) as driver,
    ):
        try:
            session = Session(port_of(folder / "log"), folder / "profile")
            yield session
            session.call("DELETE", "")
        finally:
            driver.terminate()


def port_of(log: Path) -> int:
    """The port that the driver says it listens on."""
    for _ in range(300):
        words = log.read_text().split("on port ")
        if len(words) > 2 or (len(words) == 2 and "successfully" in words[0]):
            digits = words[-1].split(".")[0].strip()
            if digits.isdigit() and int(digits):
                return int(digits)
        time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module", params=[1, 2], ids=["one panel", "two panels"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("built") / "out"
    pages.built(out, request.param)
    return (out / "report.html").as_uri()


def opened(browser: Session, address: str, width: int, scheme: str = "light") -> dict[str, Any]:
    """Open the page at a width; what its checking script saw."""
    mobile = width < 600
    browser.devtools(
        "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=mobile
    )
    browser.devtools(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    for kind in ("browser", "performance"):
        browser.log(kind)
    browser.call("POST", "/url", {"url": address})
    return browser.call("POST", "/execute/sync", {"script": CHECK, "args": []})


def requests(browser: Session) -> list[str]:
    """Addresses asked for since the page was opened, data inside the page excepted."""
    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return [address for address in asked if not address.startswith("data:")]


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_page_is_shown_whole(browser: Session, address: str, width: int) -> None:
    seen = opened(browser, address, width)
    assert browser.log("browser") == []
    assert requests(browser) == [address]
    assert seen["loaded"] == []
    assert len(seen["pictures"]) == 2
    judged = json.loads((Path(unquote(urlparse(address).path)).parent / "claims.json").read_text())
    assert len(seen["strips"]) == sum(one["low"] is not None for one in judged) > 2
    for picture in seen["pictures"] + seen["strips"]:
        assert picture["loaded"]
        assert picture["width"] > 50
        assert picture["height"] > 10
    assert width - 20 <= seen["seen"] <= width  # a desktop's scroll bar takes its share
    assert seen["wide"] <= seen["seen"]
    assert seen["outside"] == []


def test_dark_readers_get_a_dark_page(browser: Session, address: str) -> None:
    light, dark = (opened(browser, address, 390, scheme)["ground"] for scheme in ("light", "dark"))
    assert light == "rgb(255, 255, 255)"
    assert dark != light


def test_the_checks_see_a_broken_page(browser: Session, address: str, tmp_path: Path) -> None:
    """A page that asks for a picture, throws, and is too wide: each check must notice."""
    broken = tmp_path / "broken.html"
    body = '<main><img src="nowhere.png"><p style="width: 900px">wide</p></main>'
    body += '<script>throw Error("no")</script>'
    broken.write_text(f'<!doctype html><meta name="viewport" content="width=device-width">{body}')
    seen = opened(browser, broken.as_uri(), 390)
    assert any("no" in entry["message"] for entry in browser.log("browser"))
    assert len(requests(browser)) == 2
    assert not seen["pictures"][0]["loaded"]
    assert seen["outside"]
