"""A headless Chromium for tests: chromedriver's protocol over HTTP, no further package."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--proxy-server=127.0.0.1:9")      # nothing is fetched


class Browser:
    """One window; use it in a `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> Browser:
        log = (self.folder / "driver.log").open("w")
        self.driver = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=log, text=True)
        log.close()
        assert self.driver.stdout
        port = next(line.split("port ")[1].rstrip(".\n") for line in self.driver.stdout if "successfully on port" in line)
        self.base = f"http://127.0.0.1:{port}/session"
        flags = [*FLAGS, f"--user-data-dir={self.folder / 'profile'}"]
        options = {"binary": CHROMIUM, "args": flags}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        try:
            session = self.ask("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        except BaseException:
            self.__exit__()
            raise
        self.base += f"/{session}"
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            if not self.base.endswith("/session"):
                self.ask("", method="DELETE")
        finally:
            self.driver.terminate()
            self.driver.wait(20)
            if self.driver.stdout:
                self.driver.stdout.close()

    def ask(self, path: str, body: Any = None, method: str = "POST") -> Any:
        """One command of the protocol."""
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def open(self, page: Path) -> None:
        self.ask("/url", {"url": page.resolve().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns."""
        return self.ask("/execute/sync", {"script": script, "args": list(arguments)})

    def develop(self, command: str, **params: Any) -> Any:
        """A command of the browser's own protocol."""
        return self.ask("/goog/cdp/execute", {"cmd": command, "params": params})

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """The size of the window, and the reader's preference."""
        self.develop("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.develop("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        time.sleep(0.05)

    def picture(self, path: Path, whole: bool = True) -> None:
        """A screenshot, of the whole page or of what the window shows."""
        shot = self.develop("Page.captureScreenshot", captureBeyondViewport=whole, format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """What the console says, since it was last asked."""
        return [entry["message"] for entry in self.ask("/se/log", {"type": "browser"}) if entry["level"] in ("SEVERE", "WARNING")]
