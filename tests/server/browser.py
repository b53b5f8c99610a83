"""A real Chromium without a window, controlled through two pipes."""

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

import pytest

from tests.conftest import until

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def open_page(url: str):
    """Return a page in a new browser. Skip the test if no browser is installed."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"needs one of {', '.join(PROGRAMS)}; Debian has it as chromium-headless-shell")
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            # Chromium reads from descriptor 3 and writes to 4. Its sandbox refuses root, who runs tests in containers.
            ["/bin/sh", "-c", f'exec "$@" 3</dev/fd/{to_browser[0]} 4>/dev/fd/{from_browser[1]}', "sh",
             program, "--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu",
             "--disable-dev-shm-usage", "--disable-background-networking", f"--user-data-dir={profile}"],
            pass_fds=(to_browser[0], from_browser[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser[0])
        os.close(from_browser[1])
        try:
            yield Page(to_browser[1], from_browser[0], url)
        finally:
            process.kill()
            process.wait()
            os.close(to_browser[1])
            os.close(from_browser[0])


class Page:
    """One page, after the browser was told to load it.

    Attributes:
        complaints: The browser's error messages, mainly violations of the Content-Security-Policy.
        asked: The addresses that the page requested, without data: addresses.
    """

    def __init__(self, write: int, read: int, url: str) -> None:
        self._write, self._read = write, read
        self._numbers = itertools.count(1)
        self._pending = b""
        self._session = {}
        self.complaints: list[str] = []
        self.asked: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Log", "Network", "Runtime", "Page"):
            self._call(f"{domain}.enable")
        self._call("Page.navigate", url=url)

    def evaluate(self, script: str):
        """Return the value of an expression in the page; None if the expression fails."""
        return self._call("Runtime.evaluate", expression=script)["result"].get("value")

    def click(self, selector: str) -> None:
        """Wait for an element that matches the selector, and click it."""
        until(lambda: self.evaluate(f"!!document.querySelector({selector!r})"), what=selector)
        self.evaluate(f"document.querySelector({selector!r}).click()")

    def fill(self, selector: str, text: str) -> None:
        """Wait for a field, and type a text into it."""
        until(lambda: self.evaluate(f"!!document.querySelector({selector!r})"), what=selector)
        self.evaluate(f"document.querySelector({selector!r}).focus()")
        self._call("Input.insertText", text=text)

    def wait_for(self, text: str, within: str = "body") -> None:
        """Waits until an element shows a text."""
        until(lambda: text in (self.evaluate(f"document.querySelector({within!r})?.innerText") or ""), what=text)

    def _call(self, method: str, **params):
        number = next(self._numbers)
        os.write(
            self._write,
            json.dumps({"id": number, "method": method, "params": params, **self._session}).encode() + b"\0",
        )
        while True:
            message = self._receive()
            if message.get("id") == number:
                assert "result" in message, message
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _receive(self, deadline_s: float = 60.0):
        end = time.monotonic() + deadline_s
        while b"\0" not in self._pending:
            assert select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0], "the browser says nothing"
            piece = os.read(self._read, 1 << 20)
            assert piece, "the browser ended"
            self._pending += piece
        message, _, self._pending = self._pending.partition(b"\0")
        return json.loads(message)

    def _note(self, method, params) -> None:
        if method == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.complaints.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("warning", "error"):
            self.complaints.append(str([argument.get("value") for argument in params["args"]]))
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"]["text"])
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.asked.append(params["request"]["url"])
