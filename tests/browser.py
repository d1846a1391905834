"""A headless Chromium, told what to do by the DevTools protocol through two pipes; needs no package.

    https://chromedevtools.github.io/devtools-protocol/

Messages are JSON, each followed by a zero byte: commands go to the browser's file descriptor 3, answers and
events come from its 4.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-first-run", "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe",
)  # fmt: skip


def path_of_chromium() -> str | None:
    """The first Chromium on PATH."""
    return next(filter(None, map(shutil.which, NAMES)), None)


# What the browser says to a question about a page that it is just leaving, as a redirect does.
LEAVING = ("navigated or closed", "context was destroyed", "Cannot find")


class PageLeft(RuntimeError):
    """A question went to a page that is being left."""


class Page:
    """One tab, with what went wrong in it since it was opened: errors of scripts, failed requests."""

    def __init__(self, path: str, seconds: float = 180.0) -> None:
        self._seconds = seconds
        self._folder = tempfile.mkdtemp(prefix="chromium")
        commands_read, self._write = os.pipe()
        self._read, answers_write = os.pipe()
        # Above the descriptors 3 and 4, which the browser's own ends become.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (commands_read, answers_write)]
        actions = [(os.POSIX_SPAWN_DUP2, end, fd) for end, fd in zip(ends, (3, 4), strict=True)]
        command = [path, *OPTIONS, f"--user-data-dir={self._folder}", "about:blank"]
        quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        self._process = os.posix_spawn(path, command, os.environ, file_actions=actions + quiet, setpgroup=0)
        for fd in (*ends, commands_read, answers_write):
            os.close(fd)
        self._buffer, self._id, self._session = b"", 0, None
        self.errors: list[str] = []
        self._events: list[dict[str, Any]] = []
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(t["targetId"] for t in targets if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            self._session = None
            self.call("Browser.close")
        os.close(self._write)
        os.close(self._read)
        deadline = time.monotonic() + 10
        while os.waitpid(self._process, os.WNOHANG) == (0, 0):
            if time.monotonic() > deadline:
                os.killpg(self._process, signal.SIGKILL)
            time.sleep(0.05)
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and wait for its result."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        while True:
            got = self._next(method)
            if got.get("id") == self._id:
                if "error" in got:
                    said = got["error"]["message"]
                    kind = PageLeft if any(words in said for words in LEAVING) else RuntimeError
                    raise kind(f"{method}: {said}")
                return dict(got["result"])
            self._note(got)

    def _next(self, what: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], self._seconds)[0]:
                raise TimeoutError(f"the browser says nothing for {self._seconds} s, asked for {what}")
            data = os.read(self._read, 1 << 20)
            if not data:
                raise OSError(f"the browser has ended, asked for {what}")
            self._buffer += data
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(f"exception: {params['exceptionDetails']}")
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(f"console: {params['args']}")
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"log: {params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Network.loadingFailed" and not params.get("canceled"):
            self.errors.append(f"request: {params['errorText']}")
        elif method == "Network.responseReceived" and params["response"]["status"] >= 400:
            self.errors.append(f"request: {params['response']['status']} {params['response']['url']}")

    def wait_for(self, method: str) -> None:
        """Until an event of that name has come since the last `open`."""
        while all(event.get("method") != method for event in self._events):
            self._note(self._next(method))

    def open(self, url: str) -> None:
        """Go there, and wait until all of it is loaded."""
        self._events.clear()
        self.call("Page.navigate", url=url)
        self.wait_for("Page.loadEventFired")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in JavaScript; of a promise, what it comes to."""
        got = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in got:
            raise RuntimeError(f"{script}: {got['exceptionDetails']}")
        return got["result"].get("value")

    def until(self, script: str) -> Any:
        """Wait until an expression is true, on this page or the one that it leads to, and return it."""
        deadline = time.monotonic() + self._seconds
        while True:
            with contextlib.suppress(PageLeft):
                if value := self.evaluate(script):
                    return value
            if time.monotonic() > deadline:
                raise TimeoutError(f"not true in {self._seconds} s: {script}")
            time.sleep(0.05)

    def resize(self, width: int, height: int) -> None:
        """The size of the window's inside, in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
