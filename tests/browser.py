"""A headless Chromium that the tests drive through its DevTools protocol, over a pipe: no driver, no port."""

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))), None)
QUIET = ("quic", "background-networking", "component-update", "sync", "dev-shm-usage", "gpu")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--remote-debugging-pipe"]


class Page:
    """One tab. What it logs, throws, and asks the network for is kept."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self.source, self.sink = source, sink
        self.number, self.session = 0, None
        self.events: list[dict[str, Any]] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def message(self) -> dict[str, Any]:
        """The next message; they are separated by NUL."""
        text = bytearray()
        while (byte := self.source.read(1)) not in (b"\0", b""):
            text += byte
        assert text, "the browser has gone"
        return json.loads(text)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call the browser and return its answer; events that come before it are kept."""
        self.number += 1
        content = {"id": self.number, "method": method, "params": params}
        if self.session:
            content["sessionId"] = self.session
        self.sink.write(json.dumps(content).encode() + b"\0")
        self.sink.flush()
        while True:
            answer = self.message()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path) -> float:
        """Load a file; seconds until its load event and the first frame after it."""
        self.events.clear()
        started = time.perf_counter()
        self.send("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.message())
        self("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return time.perf_counter() - started

    def __call__(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors, warnings and exceptions so far."""
        found = []
        for event in self.events:
            if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
                found.append(json.dumps(event["params"]))
        return found

    def requests(self) -> list[str]:
        """Addresses asked for, other than data URIs."""
        sent = [event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def window(self, width: int, height: int = 900, scheme: str = "light", mobile: bool = False) -> None:
        """Size of the window and the colour scheme that the user prefers."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if mobile else 1, mobile=mobile)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def click(self, selector: str, number: int = 0) -> None:
        """A real click of the mouse into the middle of an element."""
        self(f"document.querySelectorAll({json.dumps(selector)})[{number}].scrollIntoView({{block: 'center'}})")
        element = f"document.querySelectorAll({json.dumps(selector)})[{number}]"
        box = self(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({element}.getBoundingClientRect())")
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str, text: str = "") -> None:
        """A key, as the keyboard sends it."""
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, text=text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        """The page as PNG."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **self._area(whole))
        path.write_bytes(base64.b64decode(answer["data"]))

    def _area(self, whole: bool) -> dict[str, Any]:
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}} if whole else {}


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile folder; it is gone at the end."""
    assert CHROMIUM is not None
    to_browser, from_us = os.pipe()
    from_browser, to_us = os.pipe()

    def place() -> None:
        """In the child: it reads from descriptor 3 and writes to 4, whatever lies there now."""
        reads, writes = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, to_us))
        os.dup2(reads, 3)
        os.dup2(writes, 4)

    command = [CHROMIUM, *FLAGS, *(f"--disable-{of}" for of in QUIET), f"--user-data-dir={profile}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, preexec_fn=place, pass_fds=(3, 4), **quiet) as process:
        os.close(to_browser)
        os.close(to_us)
        with os.fdopen(from_browser, "rb") as source, os.fdopen(from_us, "wb") as sink:
            try:
                page = Page(source, sink)
                yield page
                page.session = None
                page.send("Browser.close")
                process.wait(10)
            finally:
                process.kill()
