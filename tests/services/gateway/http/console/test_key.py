"""The console of a service that asks for keys: it has a field for one, and keeps it no longer than its tab."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from selenium.webdriver.common.keys import Keys

from services.gateway.auth.api_keys import new_key
from tests.services.gateway.tenants import keys_of

from .browser import Page, console_service

pytestmark = pytest.mark.browser


def give(page: Page, key: str) -> None:
    page.find("key").send_keys(key + Keys.ENTER)


def test_the_console_asks_for_a_key_and_keeps_it_for_its_tab(any_page: Page) -> None:
    credential, kept = new_key("acme", datetime.now(UTC))
    with console_service(keys_of(kept)) as service:
        page = Page(any_page.driver, service)
        page.driver.get(service.url)
        page.until("served", "asks for an API key")
        assert page.run("return document.activeElement.id") == "key"
        assert page.find("key").get_attribute("type") == "password"
        give(page, "swaa_not_a_key")
        page.until("served", "does not take this API key")
        give(page, credential)
        page.until("served", "tokens")
        page.set("question", "why")
        page.set("session", "new")
        page.find("send").click()
        page.until("status", "Done.")
        page.until("session-list", "1 turn")
        page.until("load-text", "tells no figures")  # they are an operator's
        assert {tenant for tenant, _ in service.tiny.store.manifests} == {"acme"}
        assert page.run("return [localStorage.length, document.cookie]") == [0, ""]
        assert credential not in page.run("return document.documentElement.outerHTML + location.href")
        page.find("key").send_keys(Keys.ENTER)  # an empty field forgets it
        page.until("served", "asks for an API key")
        assert page.run("return sessionStorage.length") == 0
        page.errors()  # browsers call refusals errors
    any_page.open()


def test_there_is_no_field_where_no_key_is_asked_for(page: Page) -> None:
    assert not page.find("key-form").is_displayed()
