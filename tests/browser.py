"""A headless Chromium, driven through the pipe of its DevTools protocol: no library, no port, no request to anywhere.

Chromium reads JSON messages from file descriptor 3 and writes them to 4, each ended by a zero byte
(`--remote-debugging-pipe`; https://chromedevtools.github.io/devtools-protocol/).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-extensions",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--mute-audio", "--no-proxy-server", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 120.0
"""Seconds that an answer may take on a busy machine."""


def find_browser() -> str | None:
    """Where a Chromium is installed; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One Chromium with one page; what the page logs and asks the network for is kept."""

    def __init__(self, program: str, profile: Path) -> None:
        to_child, self._write = os.pipe()
        self._read, from_child = os.pipe()
        command = [
            "bash",
            "-c",
            'exec "$0" "$@" 3<&"$IN" 4>&"$OUT"',
            program,
            *FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command, pass_fds=(to_child, from_child), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "IN": str(to_child), "OUT": str(from_child)},
        )  # fmt: skip
        os.close(to_child)
        os.close(from_child)
        self._buffer, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come before it are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._until(lambda found: found.get("id") == self._number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        found: dict[str, Any] = answer["result"]
        return found

    def _until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            while b"\0" in self._buffer:
                raw, self._buffer = self._buffer.split(b"\0", 1)
                message: dict[str, Any] = json.loads(raw)
                if "id" not in message:
                    self.events.append(message)
                if wanted(message):
                    return message
            if select.select([self._read], [], [], 1.0)[0]:
                more = os.read(self._read, 2**16)
                if not more:
                    break
                self._buffer += more
        raise RuntimeError(f"the browser does not answer (status {self._process.poll()})")

    def open(self, page: Path, width: int = 1400, dark: bool = False) -> None:
        """Load a file in a window of some width, in the light or the dark scheme; forgets earlier events."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        if not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["text"])
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings in the console, and exceptions, since the page was opened."""
        found = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(event["params"]["exceptionDetails"]["text"]))
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"):
                found.append(str(event["params"]["entry"]["text"]))
            elif event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in (
                "error",
                "warning",
                "assert",
            ):
                found.append(str(event["params"]["args"]))
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened."""
        sent = [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith("data:")]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


STICKING_OUT = """
(() => {
  const wide = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > wide) found.push(`page ${document.documentElement.scrollWidth} > ${wide}`);
  const own = (e) => /(auto|scroll|hidden)/.test(getComputedStyle(e).overflowX);
  const scrolls = (e) => e && e !== document.body && (own(e) || scrolls(e.parentElement));
  for (const e of document.querySelectorAll("body *")) {
    const box = e.getBoundingClientRect();
    if (box.right <= wide + 1 || box.width === 0 || scrolls(e.parentElement) || e.closest("svg")) continue;
    found.push(e.tagName + "." + e.className);
  }
  return found.slice(0, 5);
})()
"""
"""What reaches beyond the window and can not be scrolled to within its own box."""
WIDTHS = (360, 800, 1400)
GROUNDS = {False: "rgb(251, 251, 250)", True: "rgb(17, 20, 23)"}
"""Colour of the page by the scheme, dark or not."""


def check_page(browser: Browser, page: Path) -> None:
    """Fail unless a report opens without a complaint or a request, and nothing sticks out, at any width, light and dark."""
    for width in WIDTHS:
        dark = width == WIDTHS[-1]
        browser.open(page, width, dark)
        assert browser.complaints() == []
        assert browser.requests() == [page.resolve().as_uri()]
        assert browser.ask(STICKING_OUT) == [], f"{width} px"
        assert browser.ask("document.querySelectorAll('script, link, img, iframe').length") == 0
        figures = browser.ask("document.querySelectorAll('figure svg').length")
        told = browser.ask("[...document.querySelectorAll('figcaption')].filter(e => e.textContent.length > 30).length")
        assert figures == told
        assert figures >= 3
        assert browser.ask("getComputedStyle(document.body).backgroundColor") == GROUNDS[dark]
