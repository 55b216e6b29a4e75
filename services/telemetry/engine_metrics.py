"""An engine's own figures, as they are when they are asked for."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from swaa_runtime.errors import EngineFailed
from swaa_runtime.usage import EngineUsage

PATIENCE_S = 5.0
"""An engine answers between two steps. Prometheus itself gives up after 10 s."""


class EngineMetrics(Collector):
    """Of one engine. An engine that does not answer is not up, and has no figures: old ones would mislead."""

    def __init__(
        self, registry: CollectorRegistry, read: Callable[[], Awaitable[EngineUsage]], patience_s: float = PATIENCE_S
    ) -> None:
        """`read` asks the engine; it may raise EngineFailed."""
        self._read = read
        self._patience_s = patience_s
        self._usage: EngineUsage | None = None
        registry.register(self)

    async def refresh(self) -> None:
        """Ask the engine. Call before each `collect`."""
        usage = None
        with contextlib.suppress(TimeoutError, EngineFailed):
            async with asyncio.timeout(self._patience_s):
                usage = await self._read()
        self._usage = usage

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        usage = self._usage
        yield GaugeMetricFamily("swaa_engine_up", "Whether the engine answers", value=usage is not None)
        if usage is None:
            return
        requests = GaugeMetricFamily("swaa_engine_requests", "Requests in the engine", labels=("state",))
        requests.add_metric(("running",), usage.num_running)
        requests.add_metric(("waiting",), usage.num_waiting)
        yield requests
        blocks = GaugeMetricFamily("swaa_kv_blocks", "Blocks of KV memory, by what they are used for", labels=("use",))
        for use, count in usage.num_blocks.items():
            blocks.add_metric((use,), count)
        yield blocks
        yield GaugeMetricFamily("swaa_kv_block_bytes", "Size of a block", value=usage.block_bytes)
        yield GaugeMetricFamily(
            "swaa_prefill_backlog_seconds", "Predicted time of all prefill there is", value=usage.prefill_ms / 1e3
        )
        yield CounterMetricFamily("swaa_preemptions", "Requests that made room", value=usage.num_preemptions)
        yield GaugeMetricFamily("swaa_swapped_bytes", "States in host memory", value=usage.swapped_bytes)
