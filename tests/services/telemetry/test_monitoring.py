"""The dashboard and the alerts ask for what a running service has, and for nothing else."""

from __future__ import annotations

import asyncio
import re
from functools import cache

import pytest

from services.client import AsyncClient, ClientError

from .promql import TARGET_LABELS, alerts, asked_for, dashboard, expressions, shown_labels
from .scrape import Samples, scrape, scraped_service


@cache
def live() -> Samples:
    """A scrape of a service after a few requests of each kind."""

    async def scraped() -> Samples:
        async with scraped_service() as (service, page), AsyncClient(service.address) as client:
            async with client.session(recipe="tail", max_tokens=4) as chat:
                await chat.ask("d" * 40, raw=True)
                await chat.ask("e" * 10, raw=True)
            with pytest.raises(ClientError):
                await client.generate("a" * 40, raw=True, ttft_ms=0.0001, strict=True)
            return await scrape(page)

    return asyncio.run(asyncio.wait_for(scraped(), 240))


@pytest.mark.parametrize(("where", "expression"), expressions().items(), ids=expressions().keys())
def test_an_expression_parses_and_names_only_what_is_there(where: str, expression: str) -> None:
    metrics, labels = asked_for(expression)
    known = live().names
    assert metrics
    assert metrics <= known.keys(), where
    seen = [known[name] for name in metrics]
    if None not in seen:  # of what counts failures a healthy service has no samples, so no labels to see
        assert labels <= TARGET_LABELS.union(*(names or () for names in seen)), where


def test_every_metric_of_ours_is_on_the_dashboard_or_has_an_alert() -> None:
    used = {name for expression in expressions().values() for name in asked_for(expression)[0]}
    ours = {name for name in live().names if name.startswith("swaa_") and not name.endswith("_created")}
    unused = {_family(name) for name in ours} - {_family(name) for name in used}
    assert {name for name in unused if not name.endswith("_timestamp_seconds")} == set()
    assert {name for name in used if name.startswith("swaa_")} <= ours


def _family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count)$", "", name)


@pytest.mark.parametrize("broken", ["sum(rate(x_total[5m])", "rate(x_total)", "x{y=}", "sum by (x_total)"])
def test_an_expression_that_is_none_is_found(broken: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        asked_for(broken)


def test_shown_labels_are_there_to_show() -> None:
    for where, shown, left in shown_labels():
        assert shown <= left | TARGET_LABELS, where


def test_panels_are_apart_and_named() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]
        assert "http" not in str(panel.get("datasource", ""))


def test_an_alert_says_what_is_wrong_and_what_to_do() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
