"""The service as it is started tells what it does."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.client import Client

from .harness import Service

pytestmark = [pytest.mark.model, pytest.mark.redis]


def test_the_gateways_http_has_metrics_of_gateway_engine_and_store(tiny: Service) -> None:
    with Client(tiny.address) as client, client.session(recipe="full", max_tokens=4, keep=False) as chat:
        chat.ask("The ship")
    families = list(text_string_to_metric_families(httpx.get(f"http://{tiny.http_address}/metrics").text))
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    assert samples["swaa_ttft_seconds_count"] >= 1
    assert samples["swaa_engine_up"] == 1
    assert samples["swaa_kv_block_bytes"] > 0
    assert samples["swaa_store_seconds_count"] >= 1
    assert samples["swaa_catalog_error"] == 0
    assert samples["process_resident_memory_bytes"] > 0
