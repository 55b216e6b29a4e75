"""One browser and one service for all tests of the console."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .browser import ConsoleService, Page, browser, console_service


@pytest.fixture(scope="package")
def console() -> Iterator[ConsoleService]:
    with console_service() as service:
        yield service


@pytest.fixture(scope="package")
def any_page(console: ConsoleService) -> Iterator[Page]:
    with browser() as driver:
        yield Page(driver, console)


@pytest.fixture
def page(any_page: Page) -> Iterator[Page]:
    """Fresh; whatever the engine was held by is let go at the end, and the browser must have met no error."""
    any_page.errors()
    any_page.open()
    yield any_page
    any_page.service.gate.open()
    assert any_page.errors() == []
