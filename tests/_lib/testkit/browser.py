"""Headless Chromium, driven over the DevTools protocol: what a page shows, asks for, and complains about.

The browser talks through a pair of pipes, so that it opens no port and needs no library. Everything is synchronous: a
command waits for its answer, and what the browser tells meanwhile is noted.
"""

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testkit.node import DEADLINE_S, wait_until

__all__ = ["DESKTOP", "PHONE", "Browser", "Page", "browser"]

PHONE = (390, 844)
DESKTOP = (1280, 900)
CHROMIUM = "chromium"
FLAGS = (
    "--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check", "--disable-gpu",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage", "--disable-features=Translate,OptimizationHints,MediaRouter", "--mute-audio",
    "--force-color-profile=srgb", "--hide-scrollbars",
)  # fmt: skip
KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "Tab": ("", 9)}


class Browser:
    """One process of the browser with a profile of its own; `page` opens a tab. Use `browser` to get one."""

    def __init__(self, directory: Path) -> None:
        self._log = (directory / "chromium.log").open("wb")
        # As root Chromium only runs without its sandbox; what it loads here are our own pages.
        flags = [*FLAGS, *(["--no-sandbox"] if os.getuid() == 0 else []), f"--user-data-dir={directory / 'profile'}"]
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        # It reads commands from descriptor 3 and writes to 4.
        words = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", words, CHROMIUM, *flags, "about:blank"],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, pass_fds=(to_read, to_write),
            start_new_session=True,
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._rest = b""
        self._next_id = 0
        self._pages: dict[str, Page] = {}

    def page(self, size: tuple[int, int] = DESKTOP) -> "Page":
        """A new tab whose view has this size."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.send("Emulation.setFocusEmulationEnabled", enabled=True)  # keys go to it whichever tab is in front
        page.resize(*size)
        page.prefer("light")
        return page

    def send(self, method: str, parameters: dict[str, Any] | None = None, *, session: str | None = None) -> Any:
        """A command's answer; notes the events that come before it."""
        self._next_id += 1
        number = self._next_id
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + DEADLINE_S
        while True:
            answer = self._receive(deadline)
            if answer is None:
                raise AssertionError(f"the browser did not answer {method}")
            if answer.get("id") == number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self._note(answer)

    def _receive(self, deadline: float) -> dict[str, Any] | None:
        while b"\0" not in self._rest:
            if not select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            more = os.read(self._from, 1 << 20)
            if not more:
                raise AssertionError("the browser has ended")
            self._rest += more
        body, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(body)
        return found

    def _note(self, message: dict[str, Any]) -> None:
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None:
            page.note(message["method"], message["params"])

    def close(self) -> None:
        with contextlib.suppress(AssertionError, OSError):
            self.send("Browser.close")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            self._process.wait(timeout=DEADLINE_S)
            os.killpg(self._process.pid, signal.SIGKILL)  # helpers of it that are left
        os.close(self._to)
        os.close(self._from)
        self._log.close()


class Page:
    """One tab. `requests` are the URLs that it asked for, `complaints` what its console has as errors."""

    def __init__(self, owner: Browser, session: str, target: str) -> None:
        self._browser = owner
        self._session = session
        self._target = target
        self._loads = 0
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def send(self, method: str, **parameters: Any) -> Any:
        return self._browser.send(method, parameters, session=self._session)

    def note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(event["url"])
        elif method == "Page.loadEventFired":
            self._loads += 1
        elif method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "assert"):
            self.complaints.append(" ".join(str(one.get("value", one.get("description"))) for one in event["args"]))
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            self.complaints.append(event["entry"]["text"])

    # --- looking ------------------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        """Go to `url` and wait until it has loaded. Another fragment of the same page is not loaded again."""
        loads = self._loads
        answer = self.send("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        if "loaderId" in answer:
            wait_until(lambda: self.evaluate("1") and self._loads > loads, f"{url} has loaded")

    def evaluate(self, script: str) -> Any:
        """The JSON value of an expression, awaited if it is a promise."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise AssertionError(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    def wait(self, script: str, what: str) -> None:
        """Poll an expression until it is true."""
        wait_until(lambda: self.evaluate(f"!!({script})"), what)

    def text(self, selector: str) -> str:
        """What somebody reads there; empty where there is nothing."""
        found: str = self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return found

    @property
    def overflow(self) -> int:
        """By how many pixels the page is wider than the window."""
        found: int = self.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return max(0, found)

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        data = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

    # --- doing --------------------------------------------------------------------------------------------------------

    def resize(self, width: int, height: int) -> None:
        is_phone = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )  # fmt: skip

    def prefer(self, scheme: str) -> None:
        """``dark`` or ``light``; and no transitions, so that what is seen is what stays."""
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        self.send("Emulation.setEmulatedMedia", features=[{"name": n, "value": v} for n, v in features.items()])

    def click(self, selector: str) -> None:
        """Click with the mouse on the middle of the first element that matches, which must be there to be hit."""
        found = json.dumps(selector)
        self.wait(f"document.querySelector({found})", f"{selector} is there")
        spot = self.evaluate(
            f"(() => {{ const e = document.querySelector({found}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); const x = r.x + r.width / 2, y = r.y + r.height / 2;"
            " const hit = document.elementFromPoint(x, y); return {x, y, hit: e === hit || e.contains(hit)} })()"
        )
        assert spot["hit"], f"{selector} is hidden behind something"
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=spot["x"], y=spot["y"], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Replace what stands in a field."""
        self.click(selector)
        self.evaluate(f"document.querySelector({json.dumps(selector)}).select?.()")
        self.send("Input.insertText", text=text)

    def press(self, key: str) -> None:
        """A key of `KEYS`, or one character."""
        text, code = KEYS.get(key, (key, ord(key[0])))
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )  # fmt: skip

    def close(self) -> None:
        self._browser.send("Target.closeTarget", {"targetId": self._target})


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A running browser. `AssertionError` where Chromium is not installed: a test that needs it fails."""
    assert shutil.which(CHROMIUM), "chromium is not installed"
    with tempfile.TemporaryDirectory(prefix="alknet-browser-", ignore_cleanup_errors=True) as directory:
        running = Browser(Path(directory))
        try:
            yield running
        finally:
            running.close()
