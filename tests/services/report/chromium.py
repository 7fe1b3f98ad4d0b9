"""A real headless Chromium, driven over a pipe: what a page logs, asks for, measures and looks like."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ANSWER_LIMIT_S = 60.0
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # as root, which CI is, there is none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-extensions",
    "--hide-scrollbars",
)


@dataclass
class Page:
    """A tab, and all that it said while it was open.

    complaints: console messages of the level warning or error, uncaught exceptions, and what the browser logs itself.
    asked_for: the addresses of all requests but the page's own.
    """

    _requests: int
    _answers: int
    _session: str = ""
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _read: bytes = b""
    address: str = ""
    complaints: list[str] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)

    def open(
        self, address: str, width: int, *, height: int = 900, scheme: str = "light", media: str = ""
    ) -> None:
        """Load a page at a width in CSS pixels, in a colour scheme, for a medium ("print", "" for the screen)."""
        self.address = address
        self.complaints.clear()
        self.asked_for.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=media, features=features)
        self.ask("Page.navigate", url=address)
        self._next("Page.loadEventFired")
        self.evaluate("document.fonts.ready.then(() => new Promise(requestAnimationFrame)).then(() => 1)")

    def evaluate(self, expression: str) -> Any:
        """Return what an expression of JavaScript evaluates to; promises are awaited."""
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> bytes:
        """Write the whole page as a PNG file and return it."""
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        data = base64.b64decode(shot["data"])
        path.write_bytes(data)
        return data

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the browser and return its answer."""
        number = next(self._numbers)
        call = {"id": number, "method": method, "params": parameters}
        if self._session:
            call["sessionId"] = self._session
        os.write(self._requests, json.dumps(call).encode() + b"\0")
        while True:
            message = self._message()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _next(self, event: str) -> None:
        while True:
            message = self._message()
            self._note(message)
            if message.get("method") == event:
                return

    def _message(self) -> dict[str, Any]:
        limit_s = time.monotonic() + ANSWER_LIMIT_S
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, limit_s - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self._answers, 1 << 20)
            assert part, "Chromium is gone"
            self._read += part
        message, _, self._read = self._read.partition(b"\0")
        return json.loads(message)

    def _note(self, message: dict[str, Any]) -> None:
        what, parameters = message.get("method"), message.get("params", {})
        if what == "Runtime.consoleAPICalled" and parameters["type"] in ("warning", "error", "assert"):
            self.complaints.append(str([a.get("value") for a in parameters["args"]]))
        elif what == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif what == "Log.entryAdded":
            self.complaints.append(parameters["entry"]["text"])
        elif what == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            if url != self.address and not url.startswith("data:"):
                self.asked_for.append(url)


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """Start Chromium with an empty profile in a folder; skip the test, saying how to get it, where there is none."""
    command = shutil.which("chromium") or shutil.which("chromium-browser")
    if command is None:
        pytest.skip("no `chromium`: the package chromium of Debian has it")
    to_read, requests = os.pipe()
    answers, to_write = os.pipe()
    # The protocol's pipe is file 3 to read and 4 to write; a shell puts them there.
    shell = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "chromium", command]
    with subprocess.Popen(
        [*shell, *FLAGS, f"--user-data-dir={profile}"],
        pass_fds=(to_read, to_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(profile)},
    ) as process:
        os.close(to_read)
        os.close(to_write)
        try:
            page = Page(requests, answers)
            target = page.ask("Target.createTarget", url="about:blank")["targetId"]
            page._session = page.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                page.ask(f"{domain}.enable")
            yield page
            page._session = ""
            page.ask("Browser.close")
        finally:
            os.close(requests)
            os.close(answers)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
