"""The console as people use it: with a mouse, a keyboard, a phone, a screen reader; in a real browser."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from services.gateway.catalog import NamedRecipe
from swaa_runtime.visibility import first_needed, keeps_everything
from tests.services.tiny_service import tiny_catalog

from .browser import Page

pytestmark = pytest.mark.browser

LEAST_CONTRAST = 4.5
"""WCAG 2.2 AA, of text; 3 of what only has to be seen."""


def ask(page: Page, question: str = "why", tokens: int = 4, **fields: str) -> None:
    for name, value in {"max-tokens": str(tokens), **fields}.items():
        page.set(name, value)
    page.set("question", question)
    page.find("send").click()


def test_ask_with_an_upload_watch_and_delete_its_session(page: Page, tmp_path: Path) -> None:
    document = tmp_path / "report.txt"
    document.write_text("abc " * 100, encoding="utf-8")
    page.find("file").send_keys(str(document))
    page.until("document-hint", "Read from report.txt, 400 bytes")
    page.service.gate.shut()
    ask(page, recipe="sliding", session="new", ttft="60000", tpot="60000")
    page.until("ran-recipe", "sliding")
    assert page.text("answer") == ""
    page.service.gate.let(2)
    page.until("progress-text", " of 409 tokens")
    assert 0 < float(page.find("prefill").get_attribute("value") or 0) < 409
    page.until("memory-text", "of 413, sliding keeps")
    page.service.gate.open()
    page.until("status", "Done.")
    assert len(page.text("answer")) == 4
    assert page.text("ran-verdict") == "SLA met"
    assert "requested" in page.text("ran-reason") or "x-swaa-recipe" in page.text("ran-reason")
    assert re.search(r"Time to first token\D*1?[\d.]+ m?s", page.text("ran-figures"))
    assert "Measured, in whole blocks" in page.text("memory-text")
    page.until("session-list", "1 turn, 413 tokens")
    session = page.all("#session-list li")[0].get_attribute("data-session")
    assert page.find("session").get_attribute("value") == session
    page.find("session-list").find_element(By.XPATH, ".//button[text()='Delete']").click()
    assert str(session) in page.text("confirm-text")
    page.find("confirm-yes").click()
    page.until("sessions-text", "Deleted.")
    assert page.all("#session-list li") == []
    assert page.find("session").get_attribute("value") != session


def test_a_session_goes_on_and_can_be_forked(page: Page) -> None:
    ask(page, "first", session="new")
    page.until("status", "Done.")
    page.until("session-list", "1 turn")
    page.find("session-list").find_element(By.XPATH, ".//button[text()='Continue']").click()
    assert page.driver.switch_to.active_element == page.find("question")
    ask(page, "second")
    page.until("session-list", "2 turns")
    page.find("session-list").find_element(By.XPATH, ".//button[text()='Fork']").click()
    page.until("sessions-text", "Forked to")
    assert len(page.all("#session-list li")) == 2
    for session in [item.get_attribute("data-session") for item in page.all("#session-list li")]:
        page.run("return fetch('api/sessions/' + arguments[0], {method: 'DELETE'}).then(() => 1)", session)


@pytest.mark.parametrize("how", ["button", "escape", "leaving"])
def test_cancelling_frees_all_that_the_turn_held(page: Page, how: str) -> None:
    page.service.gate.shut()
    ask(page, tokens=400)
    page.service.gate.let(4)
    page.until("status", "Answering…")
    if how == "button":
        page.find("cancel").click()
    elif how == "escape":
        ActionChains(page.driver).send_keys(Keys.ESCAPE).perform()
    else:
        page.driver.get("about:blank")
    if how != "leaving":
        page.until("status", "Cancelled.")
        assert page.find("send").is_enabled()
        assert not page.find("cancel").is_enabled()
    page.service.gate.open()
    page.service.until_idle()


def test_all_candidates_are_shown_with_their_figures(page: Page) -> None:
    page.set("question", "why")
    page.find("plan-only").click()
    page.until("status", "Planned; nothing was run.")
    names = [cell.text.removeprefix("▸ ") for cell in page.all("#candidates th.name")]
    assert sorted(names) == sorted(tiny_catalog().recipes)
    assert len(page.all("#candidates tr.chosen")) == 1
    assert len(page.all("#pareto circle")) == len(names)
    assert all(name in (page.all("#pareto svg")[0].get_attribute("aria-label") or "") for name in names)
    assert page.text("answer") == ""
    assert not page.find("ran").is_displayed()


def test_what_is_wrong_is_said_where_it_is_wrong(page: Page) -> None:
    page.find("send").click()
    page.until("problem", "Please write a question.")
    assert page.driver.switch_to.active_element == page.find("question")
    page.run("document.getElementById('more').open = true")
    ask(page, quality="7")
    page.until("problem", "Quality at least")
    page.set("quality", "")
    ask(page, "why" * 1000)
    page.until("problem", "1024")
    assert [error for error in page.errors() if "400" not in error] == []  # browsers log refusals


def test_text_of_model_and_user_never_becomes_markup(page: Page) -> None:
    ask(page, "<img src=x onerror=alert(1)><b>bold</b>")
    page.until("status", "Done.")
    assert page.all("#answer *") == []
    for attempt in (
        "document.body.innerHTML = '<b>bold</b>'",
        "document.body.setAttribute('onclick', 'window.ranInline = 1')",
        "document.head.append(Object.assign(document.createElement('script'), {textContent: 'window.ranInline = 1'}))",
        "setTimeout('window.ranInline = 1', 0)",
    ):
        assert page.run(f"try {{ {attempt}; return false }} catch {{ return true }}"), attempt
    assert page.run("return window.ranInline") is None
    assert page.errors() != []  # the policy says what it refused


def test_live_load(page: Page) -> None:
    page.until("load-tiles", "KV memory")
    assert "Running0" in page.text("load-tiles")
    page.service.gate.shut()
    ask(page, tokens=20)
    page.service.gate.let(2)
    page.service.gate.open()
    page.until("status", "Done.")
    page.until("load-memory", " in use")


def test_a_phone_scrolls_one_way_only(page: Page) -> None:
    page.open(width=360, height=740)
    ask(page, "word " * 30, session="new")
    page.until("status", "Done.")
    page.until("session-list", "1 turn")
    page.run("document.getElementById('more').open = true")
    assert page.run("return document.documentElement.scrollWidth") <= 360
    wide = """
    const right = (element) => element.getBoundingClientRect().right;
    const inside = [...document.querySelectorAll('section *')].filter((each) => !each.closest('.unseen'));
    return inside.filter((each) => right(each) > right(each.closest('section')) + 0.5).map((each) => each.outerHTML)
    """
    assert page.run(wide) == []
    small = "return [...document.querySelectorAll('button, select')].filter(e => e.offsetHeight && e.offsetHeight < 24)"
    assert page.run(small) == []
    session = page.all("#session-list li")[0].get_attribute("data-session")
    page.run("return fetch('api/sessions/' + arguments[0], {method: 'DELETE'}).then(() => 1)", session)


def test_a_keyboard_is_enough(page: Page) -> None:
    def press(*keys: str) -> None:
        ActionChains(page.driver).send_keys(*keys).perform()

    seen = []
    for _ in range(12):
        press(Keys.TAB)
        seen.append(page.run("return document.activeElement.id || document.activeElement.tagName"))
        outline = "const s = getComputedStyle(document.activeElement); return s.outlineStyle + s.outlineWidth"
        assert page.run(outline) == "solid3px", seen[-1]
        if seen[-1] == "send":
            break
    assert seen[1:] == ["document", "file", "question", "sla", "session", "SUMMARY", "send"]
    page.run("document.getElementById('question').focus()")
    page.service.gate.shut()
    press("why")
    page.set("max-tokens", "4")
    ActionChains(page.driver).key_down(Keys.CONTROL).send_keys(Keys.ENTER).key_up(Keys.CONTROL).perform()
    page.service.gate.let(1)
    page.until("status", "Answering…")
    press(Keys.ESCAPE)
    page.until("status", "Cancelled.")
    page.service.gate.open()
    page.find("send").send_keys(Keys.ENTER)
    page.until("status", "Done.")
    assert page.run("return document.activeElement.id") == "send"


def test_everything_that_can_be_used_has_a_name(page: Page) -> None:
    page.run("document.getElementById('more').open = true")
    page.set("question", "why")
    page.find("plan-only").click()
    page.until("status", "Planned")
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = {"button", "textbox", "combobox", "spinbutton", "checkbox"}
    roles = controls | {"image", "progressbar", "progressindicator", "table"}
    found: dict[str, list[str]] = {}
    for node in tree:
        role = node.get("role", {}).get("value", "").lower()
        if role in roles and not node.get("ignored"):
            found.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    assert controls < found.keys()
    assert [role for role, names in found.items() if not all(names)] == []
    lives = {element.get_attribute("id") for element in page.all("[aria-live], [role=status], [role=alert]")}
    assert {"status", "problem", "answer"} <= lives


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(page: Page, scheme: str) -> None:
    page.open(scheme=scheme)
    style = "const s = getComputedStyle(document.documentElement); return n => s.getPropertyValue(n).trim()"
    marks = ("full", "lookback", "window", "sinks")
    names = ("page", "card", "ink", "quiet", "accent", "accent-ink", "good", "bad", "control", "focus", *marks)
    read = f"const get = (() => {{ {style} }})(); return Object.fromEntries(arguments[0].map(n => [n, get('--' + n)]))"
    colours: dict[str, str] = page.run(read, names)
    for text, ground in (
        *((ink, ground) for ink in ("ink", "quiet") for ground in ("page", "card")),
        ("accent", "card"),
        ("accent-ink", "accent"),
        ("good", "card"),
        ("bad", "card"),
    ):
        assert contrast(colours[text], colours[ground]) >= LEAST_CONTRAST, (text, ground)
    for mark in ("control", "focus", *marks):
        assert contrast(colours[mark], colours["card"]) >= 3, mark


def test_nothing_moves_for_those_who_want_none(page: Page) -> None:
    media = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    moving = "return [...document.querySelectorAll('*')].filter(e => getComputedStyle(e).transitionDuration !== '0s')"
    assert page.run(moving) == []


def spans(named: NamedRecipe, done: int, prompt_stop: int, continues: bool) -> list[list[list[int]]]:
    """Of each layer, as the runtime frees them."""
    kept = []
    for rule in named.rules:
        keeps_all = keeps_everything(rule, done, prompt_stop, continues)
        first = first_needed(rule, done, keeps_all)
        sinks = min(rule.sink_tokens, done)
        kept.append([span for span in ([0, sinks], [max(first, sinks), done]) if span[0] < span[1]])
    return kept


@pytest.mark.parametrize("continues", [False, True])
def test_the_picture_follows_the_runtimes_rules(page: Page, continues: bool) -> None:
    script = """
    const [recipes, numLayers, moments, done] = arguments;
    import('./console/residency.js').then(({ layerRules, keptSpans }) => {
      const spans = (rule, moment) => keptSpans(rule, moment).map(({ start, stop }) => [start, stop]);
      const drawn = (recipe, moment) => layerRules(recipe, numLayers).map((rule) => spans(rule, moment));
      done(recipes.map((recipe) => moments.map((moment) => drawn(recipe, moment))));
    });
    """
    catalog, num_layers = tiny_catalog(), len(tiny_catalog().recipes["full"].rules)
    moments: list[dict[str, Any]] = [
        {"done": done, "promptStop": 40, "continues": continues} for done in (0, 1, 2, 5, 9, 10, 17, 35, 39, 40, 41, 60)
    ]
    recipes = page.run("return fetch('api/recipes').then((r) => r.json())")["recipes"]
    drawn = page.driver.execute_async_script(script, [each["recipe"] for each in recipes], num_layers, moments)
    for each, by_moment in zip(recipes, drawn, strict=True):
        named = catalog.recipes[each["recipe"]["name"]]
        assert by_moment == [spans(named, moment["done"], 40, continues) for moment in moments], named.name


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two #rrggbb."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
