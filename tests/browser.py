"""A real Chromium without a window, driven by the DevTools protocol."""

import asyncio
import base64
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import aiohttp

KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "Tab": 9, "Enter": 13, " ": 32}


def chromium() -> str | None:
    """The program, if it is installed."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("MTKD_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Page:
    """One page: what it says, asks of the network, and what a reader does with it.

    Attributes:
        errors: exceptions, console errors and warnings, refused resources.
        requests: addresses that it asked for.
    """

    def __init__(self, program: str, width: int = 1280, height: int = 900) -> None:
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._width, self._height = width, height
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        self._process = subprocess.Popen(
            [program, *flags, "--disable-background-networking", "--disable-dev-shm-usage", "--remote-debugging-port=0",
             f"--user-data-dir={self._folder.name}", f"--window-size={width},{height}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._answers: dict[int, asyncio.Future] = {}
        self._events: dict[str, asyncio.Event] = {}
        self._count = 0
        self._loop.run_until_complete(self._connect())

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(Exception):
            self.ask("Browser.close")
        self._loop.run_until_complete(self._disconnect())
        self._loop.close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def ask(self, method: str, **parameters):
        """Send a command, give its result."""
        return self._loop.run_until_complete(self._ask(method, parameters))

    def open(self, path: Path) -> float:
        """Load a file; give the seconds until all of it is drawn."""
        self.errors.clear()
        self.requests.clear()
        start = time.perf_counter()
        self._events["Page.loadEventFired"] = asyncio.Event()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self._loop.run_until_complete(asyncio.wait_for(self._events["Page.loadEventFired"].wait(), 60))
        self.js("Promise.all([chartsReady, viewerReady]).then(() => null)")
        self.settle()
        return time.perf_counter() - start

    def js(self, expression: str):
        """Evaluate an expression, a promise's value when it has one."""
        result = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def settle(self) -> None:
        """Wait for two frames."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(null))))")

    def choose(self, identifier: str, value: object) -> None:
        """Choose an option, as a reader does."""
        self.js(
            f"(() => {{ const s = document.getElementById('{identifier}'); s.value = {str(value)!r};"
            "s.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )
        self.settle()

    def box(self, selector: str) -> tuple[float, float, float, float]:
        """Scroll to an element; give its left, top, width and height in the window."""
        return self.js(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            "const r = e.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"
        )

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        left, top, width, height = self.box(selector)
        self.drag((left + width / 2, top + height / 2), None)

    def drag(self, start: tuple[float, float], end: tuple[float, float] | None) -> None:
        """Press the mouse, move it, let go."""
        places = [start, *([] if end is None else [((start[0] + end[0]) / 2, (start[1] + end[1]) / 2), end])]
        for kind, (x, y) in zip(
            ["mousePressed", *["mouseMoved"] * (len(places) - 1), "mouseReleased"], [*places, places[-1]], strict=True
        ):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        self.settle()

    def swipe(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Touch, move the finger, let go."""
        for kind, points in (("touchStart", [start]), ("touchMove", [end]), ("touchEnd", [])):
            self.ask("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])
        self.settle()

    def press(self, key: str, shift: bool = False) -> None:
        """Press and release a key."""
        text = {"text": {"Enter": "\r"}.get(key, key)} if key in (" ", "Enter") else {}
        for kind in ("keyDown", "keyUp"):
            code = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
            self.ask(
                "Input.dispatchKeyEvent", type=kind, modifiers=8 * shift, **code, **(text if kind == "keyDown" else {})
            )
        self.settle()

    def emulate(self, *, width: int = 0, height: int = 0, touch: bool = False, dark: bool | None = None) -> None:
        """Take another window, a touch screen or the system's colours."""
        if width:
            self._width, self._height = width, height
            self.ask(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=touch
            )
        self.ask("Emulation.setTouchEmulationEnabled", enabled=touch)
        if dark is not None:
            value = "dark" if dark else "light"
            self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])
        self.settle()

    def picture(self, path: Path, selector: str | None = None) -> None:
        """Take a screenshot of the window, or of an element whole."""
        clip = {}
        if selector:
            self.box(selector)
            left, top, width, height = self.js(
                f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
                "return [r.left + scrollX, r.top + scrollY, r.width, r.height]; })()"
            )
            clip = {"clip": {"x": left, "y": top, "width": width, "height": height, "scale": 1}}
        shot = self.ask("Page.captureScreenshot", captureBeyondViewport=bool(selector), **clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    async def _connect(self) -> None:
        port = Path(self._folder.name, "DevToolsActivePort")
        for _ in range(300):
            if port.exists() and len(port.read_text().split()) == 2:
                break
            await asyncio.sleep(0.1)
        address = f"http://127.0.0.1:{port.read_text().split()[0]}"
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"{address}/json/list") as answer:
            targets = await answer.json()
        page = next(target for target in targets if target["type"] == "page")
        self._socket = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        self._reader = asyncio.ensure_future(self._read())
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self._ask(f"{domain}.enable", {})

    async def _disconnect(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        await self._socket.close()
        await self._session.close()

    async def _ask(self, method: str, parameters: dict):
        self._count += 1
        answer = self._answers[self._count] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._count, "method": method, "params": parameters})
        result = await asyncio.wait_for(answer, 60)
        assert "error" not in result, (method, result["error"])
        return result["result"]

    async def _read(self) -> None:
        async for message in self._socket:
            content = message.json()
            if "id" in content:
                self._answers.pop(content["id"]).set_result(content)
                continue
            method, parameters = content["method"], content["params"]
            if method in self._events:
                self._events[method].set()
            if method == "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
                self.errors.append(str([x.get("value", x.get("description")) for x in parameters["args"]]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                self.errors.append(parameters["entry"]["text"])
            elif method == "Network.requestWillBeSent":
                self.requests.append(parameters["request"]["url"])
