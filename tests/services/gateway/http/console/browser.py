"""A headless Chromium on the console of a tiny service in a thread; the engine waits where a test says so."""

from __future__ import annotations

import asyncio
import functools
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from services.gateway.auth.authenticator import Authenticator, Everybody
from services.gateway.http.app import build_app
from services.gateway.http.probes import Health
from services.gateway.http.running import Running
from services.gateway.http.server import HttpServer
from services.gateway.receiving import Intake
from services.telemetry.process import running_telemetry
from tests.services.telemetry.scrape import page_of
from tests.services.tiny_service import TinyService, in_thread, tiny_service

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_S = 120
EVERYBODY = Everybody()


class Gate:
    """Lets an engine make so many steps, or all; on the engine's thread it is called before each."""

    def __init__(self) -> None:
        self._steps = threading.Semaphore(0)
        self._shut = False

    def __call__(self) -> None:
        if self._shut:
            self._steps.acquire()

    def shut(self) -> None:
        """No step from now on, but those that are let through."""
        self._steps = threading.Semaphore(0)
        self._shut = True

    def let(self, num_steps: int) -> None:
        """Let so many steps through."""
        self._steps.release(num_steps)

    def open(self) -> None:
        """All steps from now on."""
        self._shut = False
        self._steps.release(1000)


@dataclass(frozen=True, slots=True)
class ConsoleService:
    """A tiny service with its HTTP; `gate` holds its engine."""

    tiny: TinyService
    url: str
    gate: Gate
    loop: asyncio.AbstractEventLoop

    def until_idle(self) -> None:
        """Wait until no turn runs and none holds memory. Raises TimeoutError."""

        async def idle() -> None:
            async with asyncio.timeout(PATIENCE_S):
                while await self.tiny.rig.used_blocks() or self.tiny.replica.num_turns:  # noqa: ASYNC110 - the service tells nobody
                    await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(idle(), self.loop).result()


def console_service(authenticator: Authenticator = EVERYBODY) -> AbstractContextManager[ConsoleService]:
    """A service in a thread of its own."""
    return in_thread(functools.partial(_console, authenticator))


@asynccontextmanager
async def _console(authenticator: Authenticator) -> AsyncIterator[ConsoleService]:
    async with running_telemetry("", "tiny") as telemetry, tiny_service(telemetry) as tiny:
        running, health = Running(), Health(serving=True)
        pages = page_of(tiny, telemetry)
        parts = (tiny.facts, tiny.answers, tiny.sessions, authenticator, health, running, Intake(1 << 30))
        app = build_app("tiny", *parts, pages)
        server = HttpServer(app, running, "127.0.0.1:0")
        gate = tiny.rig.runner.before_step = Gate()
        await server.start()
        try:
            yield ConsoleService(tiny, f"http://127.0.0.1:{server.port}/", gate, asyncio.get_running_loop())
        finally:
            gate.open()
            await server.stop(0)


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own, that collects what pages say on their console."""
    assert CHROMIUM is not None
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory(prefix="swaa-chromium-", ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1280,900"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
        try:
            yield driver
        finally:
            driver.quit()


@dataclass(frozen=True, slots=True)
class Page:
    """The console in a browser."""

    driver: webdriver.Chrome
    service: ConsoleService

    def open(self, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Load it anew and wait until it is ready."""
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.get(self.service.url)
        self.until("served", "tokens")

    def find(self, name: str) -> WebElement:
        """By id."""
        return self.driver.find_element(By.ID, name)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, name: str) -> str:
        return str(self.run("return document.getElementById(arguments[0]).textContent", name))

    def run(self, script: str, *args: Any) -> Any:
        return self.driver.execute_script(script, *args)

    def until(self, name: str, text: str) -> None:
        """Wait until that element says so."""
        try:
            WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.05).until(lambda _: text in self.text(name))
        except TimeoutException:
            raise AssertionError(f"{name} says {self.text(name)!r}, not {text!r}") from None

    def set(self, name: str, value: str) -> None:
        """Choose or fill in, as a user's input does."""
        script = "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
        self.run(script + "e.dispatchEvent(new Event('input')); e.dispatchEvent(new Event('change'))", name, value)

    def errors(self) -> list[str]:
        """What browsers call errors, since last asked."""
        log = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log if entry["level"] == "SEVERE"]
