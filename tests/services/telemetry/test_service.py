"""What a running service tells of itself: a scrape, a trace, log lines; and none of its prompts' words."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.client import AsyncClient, ClientError, Overloaded
from services.telemetry.logs import JsonFormatter
from services.telemetry.page import MetricsPage
from services.telemetry.process import Telemetry
from services.telemetry.tracing import Tracing
from tests.services.replica.builders import asynchronous
from tests.services.tiny_service import tiny_service

from .scrape import Samples, scrape, scraped_service
from .tracing import Spans

PROMPT = "zebra umbrella tangerine"


@asynchronous
async def test_turns_are_counted_by_recipe_class_and_how_they_ended() -> None:
    async with scraped_service() as (service, page), AsyncClient(service.address) as client:
        await client.generate("a" * 40, raw=True, max_tokens=5, recipe="tail", ttft_ms=60_000, tpot_ms=60_000)
        await client.generate("b" * 30, raw=True, max_tokens=3, recipe="tail", ttft_ms=0.001)
        with pytest.raises(ClientError):
            await client.generate("c", raw=True, recipe="none such")
        samples = await scrape(page)
    by = {"recipe": "tail", "sla_class": "balanced"}
    assert samples.value("swaa_ttft_seconds_count", **by) == 2
    assert samples.value("swaa_ttft_seconds_sum", **by) > 0
    assert samples.value("swaa_tpot_seconds_count", **by) == 2
    assert samples.value("swaa_ttft_prediction_ratio_count", recipe="tail") == 2
    assert samples.value("swaa_prompt_tokens_total", recipe="tail") == 70
    assert samples.value("swaa_generated_tokens_total", recipe="tail") == 8
    assert samples.value("swaa_sla_requests_total", met="true", **by) == 1
    assert samples.value("swaa_sla_requests_total", met="false", **by) == 1
    assert samples.value("swaa_requests_total", status="OK", sla_class="balanced") == 2
    assert samples.value("swaa_requests_total", status="INVALID_ARGUMENT", sla_class="unknown") == 1
    assert samples.value("swaa_answers_running") == 0
    assert samples.value("swaa_sla_ttft_target_seconds", sla_class="balanced") > 0
    assert samples.value("swaa_catalog_error") == 0


@asynchronous
async def test_a_client_cannot_make_labels() -> None:
    async with scraped_service() as (service, page), AsyncClient(service.address) as client:
        for number in range(5):
            with pytest.raises(ClientError):
                await client.generate("a", raw=True, sla=f"made-up-{number}")
            with pytest.raises(ClientError):
                await client.generate("a", raw=True, recipe=f"made-up-{number}")
        assert "made-up" not in (await scrape(page)).text


@asynchronous
async def test_what_is_refused_and_who_goes_away_is_counted_as_that() -> None:
    async with scraped_service() as (service, page), AsyncClient(service.address) as client:
        with pytest.raises((Overloaded, ClientError)):
            await client.generate("a" * 40, raw=True, ttft_ms=0.0001, strict=True)
        async with client.stream("b" * 40, raw=True, max_tokens=500) as stream:
            await anext(aiter(stream))
        with pytest.raises(ClientError):
            await client.generate("c" * 40, raw=True, max_tokens=500, timeout_s=0.05)
        samples = await scrape_until(page, "swaa_answers_running", 0)
    assert sum(samples.values("swaa_refusals_total", reason="sla_never")) == 1
    assert sum(samples.values("swaa_requests_total", status="CANCELLED")) >= 1
    assert not samples.values("swaa_requests_total", status="OK")


@asynchronous
async def test_sessions_are_counted_by_how_they_came_back_and_what_was_saved() -> None:
    async with scraped_service() as (service, page), AsyncClient(service.address) as client:
        async with client.session(recipe="tail", max_tokens=4) as chat:
            await chat.ask("d" * 40, raw=True)
            await chat.ask("e" * 10, raw=True)
        samples = await scrape(page)
    assert samples.value("swaa_restores_total", kind="none") == 1
    assert samples.value("swaa_restores_total", kind="hot") == 1
    assert samples.value("swaa_session_saves_total", result="saved") == 2
    assert samples.value("swaa_session_saved_bytes_total") > 0
    assert samples.value("swaa_store_seconds_count", operation="save") == 2
    assert samples.value("swaa_kv_blocks", use="parked") > 0
    assert samples.value("swaa_kv_blocks", use="window") == 0


@asynchronous
async def test_an_engine_that_is_gone_has_no_figures() -> None:
    async with scraped_service() as (service, page):
        assert (await scrape(page)).value("swaa_engine_up") == 1
        service.rig.loop.close()
        samples = await scrape(page)
    assert samples.value("swaa_engine_up") == 0
    assert not samples.values("swaa_kv_blocks")


@asynchronous
async def test_the_page_speaks_openmetrics_too() -> None:
    async with scraped_service() as (_, page):
        transport = httpx.ASGITransport(page.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://metrics") as client:
            text = await client.get("/metrics")
            other = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert text.headers["content-type"].startswith("text/plain; version=")
    assert other.headers["content-type"].startswith("application/openmetrics-text")
    assert other.text.endswith("# EOF\n")
    assert {family.name for family in text_string_to_metric_families(text.text)} >= {"swaa_requests", "swaa_kv_blocks"}


@asynchronous
async def test_one_trace_goes_from_the_client_to_the_store() -> None:
    spans = Spans()
    telemetry = Telemetry(Tracing(spans.provider))
    async with (
        tiny_service(telemetry) as service,
        AsyncClient(service.address, tracer_provider=spans.provider) as client,
    ):
        with spans.provider.get_tracer("program").start_as_current_span("program"):
            await client.generate(PROMPT * 3, raw=True, session="new", recipe="tail", max_tokens=4)
    assert len(spans.trace_ids()) == 1
    assert spans.parents() == {
        "program": None,
        "client.generate": "program",
        "gateway.answer": "client.generate",
        "gateway.understand": "gateway.answer",
        "gateway.plan": "gateway.answer",
        "replica.turn": "gateway.answer",
        "replica.queue": "replica.turn",
        "replica.prefill": "replica.turn",
        "replica.decode": "replica.turn",
        "store.save": "replica.turn",
    }
    said = "".join(span.to_json() for span in spans.ended)
    assert not [word for word in PROMPT.split() if word in said]
    assert (spans.one("gateway.answer").attributes or {})["swaa.recipe"] == "tail"


@asynchronous
async def test_lines_of_json_have_the_request_and_the_trace_and_no_words_of_the_prompt() -> None:
    spans = Spans()
    with captured_lines() as lines:
        telemetry = Telemetry(Tracing(spans.provider))
        async with tiny_service(telemetry) as service, AsyncClient(service.address) as client:
            await client.generate(PROMPT * 3, raw=True, session="new", recipe="tail", max_tokens=4)
            with pytest.raises(ClientError):
                await client.generate(PROMPT, raw=True, recipe=PROMPT.split()[0])
    written = lines.getvalue()
    assert not [word for word in PROMPT.split() if word in written]
    answered, failed = (line for line in map(json.loads, written.splitlines()) if "status" in line)
    assert answered["recipe"] == "tail"
    assert answered["prompt_tokens"] == len(PROMPT) * 3
    assert answered["generated_tokens"] == 4
    assert answered["ttft_ms"] > 0
    assert answered["session"]
    assert int(answered["trace_id"], 16) in spans.trace_ids()
    assert failed["status"] == "INVALID_ARGUMENT"
    assert failed["trace_id"] != answered["trace_id"]


@contextmanager
def captured_lines() -> Iterator[io.StringIO]:
    """What our loggers write as JSON, at every level."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(JsonFormatter())
    loggers = [logging.getLogger(name) for name in ("services", "swaa_runtime")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        yield text
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


async def scrape_until(page: MetricsPage, name: str, value: float) -> Samples:
    """A scrape in which it has come to that; the service tells nobody when it has cleaned up."""
    for _ in range(1000):
        samples = await scrape(page)
        if samples.value(name) == value:
            return samples
    raise AssertionError(f"{name} never was {value}")
