"""A headless Chromium, spoken to in its own DevTools protocol."""

import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

from tests.seams.checkout import wait_until
from tests.seams.servers import running, web

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
    "--remote-debugging-port=0", "--window-size=1500,1000", "--hide-scrollbars",
]  # fmt: skip


class Browser:
    """One page."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)

    def call(self, method: str, **arguments):
        """Return the result of a method of the protocol; skip events."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        wait_until(lambda: self.evaluate("document.readyState == 'complete' && document.body != null"), address)

    def evaluate(self, script: str):
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def text(self) -> str:
        """Return the text of the page."""
        return self.evaluate("document.body.innerText")

    def wait_for(self, script: str, seconds: float = 60.0):
        """Return the first true value of an expression."""
        try:
            return wait_until(lambda: self.evaluate(script), script, seconds)
        except AssertionError as error:
            pictures = "[...document.images].map(image => `${image.src.slice(0, 120)} ${image.naturalWidth}`)"
            text = self.evaluate(f"[location.href, ...{pictures}, document.body.innerText].join('\\n')")
            raise AssertionError(f"{error}; the page says:\n{text}") from None

    def wait_for_text(self, text: str) -> None:
        self.wait_for(f"document.body.innerText.includes({json.dumps(text)})")

    def click(self, label: str, place: str = "document") -> None:
        """Press the button of this label as soon as it is there."""
        button = f"[...{place}.querySelectorAll('button')].find(button => button.innerText.trim() == '{label}')"
        self.wait_for(f"{button} != null")
        self.evaluate(f"{button}.click()")

    def scroll_until(self, script: str, seconds: float = 60.0):
        """Scroll down by and by: pages draw what comes into view; the first true value of an expression."""
        parts = "[...document.querySelectorAll('*')].filter(part => part.scrollHeight > part.clientHeight + 50)"
        return self.wait_for(f"{parts}.forEach(part => {{part.scrollTop += 150}}), {script}", seconds)

    def press(self, key: str) -> None:
        """Press and release a key, such as "ArrowRight", where the focus is."""
        code = {"ArrowLeft": 37, "ArrowRight": 39}[key]  # of the keys that tests press
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)


@contextmanager
def opened_browser(folder: Path, environment: dict[str, str]) -> Iterator[Browser]:
    """A browser with a fresh profile, which ends with the block."""
    assert CHROMIUM is not None
    profile, log = folder / "profile", folder / "chromium.log"
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with running(command, folder, environment, log):
        told = profile / "DevToolsActivePort"
        port = wait_until(lambda: told.is_file() and told.read_text().split("\n")[0], "Chromium", seconds=60)
        pages = web.get(f"http://127.0.0.1:{port}/json", timeout=10).json()
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        with connect(address, max_size=None, proxy=None) as connection:
            yield Browser(connection)
