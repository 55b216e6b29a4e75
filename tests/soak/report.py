"""What a minute looked like, and the verdict. Pure: figures in, lines out."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tests.soak.audit import Audit
from tests.soak.idle import Reading

WARM_UP_SHARE = 0.2
"""Of the minutes: pools fill, allocators learn their sizes."""

FLAT_SHARE = 0.03
MIN_MINUTES = 5
"""After the warm-up; with fewer, memory is shown and not judged."""

MORE_HANDLES = 8
"""Files and threads that may be open at the end beyond those after the warm-up: connections that happen to be kept."""

REDIS_FACTOR, REDIS_BASE_MIB = 1.3, 64
"""Redis's resident memory beside what it may store: structures, what its allocator keeps; and its program."""

COLUMNS = ("minute", "done", "turns saved", "refused", "preempted", "RSS MiB", "Redis MiB", "stored MiB", "used/stored")
MORE_COLUMNS = ("sessions", "prefixes", "parked", "free", "files", "threads", "oracle", "faults")


@dataclass(frozen=True, slots=True)
class Minute:
    """One look at an idle service. `worst_gap`: of the oracle, in logits, so far."""

    number: int
    num_done: int
    num_saved: int
    num_refused: int
    reading: Reading
    audit: Audit
    num_checked: int
    worst_gap: float
    num_faults: int

    @property
    def redis_per_stored_byte(self) -> float:
        """Bytes that Redis has allocated for each byte that tenants store. What they store may grow; this may not."""
        return self.reading.redis_used_mib * 2**20 / max(1, self.audit.stored_bytes)

    def row(self) -> str:
        """A line of the table."""
        read, audit = self.reading, self.audit
        cells = (
            *(self.number, self.num_done, self.num_saved, self.num_refused, read.preemptions),
            *(f"{read.rss_mib:.1f}", f"{read.redis_rss_mib:.1f}", f"{audit.stored_bytes / 2**20:.1f}"),
            f"{self.redis_per_stored_byte:.3f}",
            *(len(audit.sessions), audit.num_prefixes, read.parked_blocks, read.free_blocks),
            *(read.num_files, read.num_threads, self.num_checked, self.num_faults),
        )
        return "  ".join(f"{cell!s:>{len(name)}}" for cell, name in zip(cells, header_cells(), strict=True))


@dataclass(frozen=True, slots=True)
class Trend:
    """How a figure went, minute by minute: the ends of the line through all of it.

    Single minutes swing by some per cent with what happens to be held and freed: few of them cannot tell 3 % of change.
    """

    start: float
    end: float
    judged: bool

    @property
    def change(self) -> float:
        """Relative to the start."""
        return self.end / self.start - 1

    @property
    def flat(self) -> bool:
        """Whether it may be called flat; true as well where it is not judged."""
        return not self.judged or abs(self.change) <= FLAT_SHARE


def header_cells() -> tuple[str, ...]:
    """Names of the table's columns."""
    return (*COLUMNS, *MORE_COLUMNS)


def header() -> str:
    """The table's first line."""
    return "  ".join(header_cells())


def after_warm_up(minutes: Sequence[Minute]) -> Sequence[Minute]:
    """Those that count for memory."""
    return minutes[int(len(minutes) * WARM_UP_SHARE) :]


def trend(figures: Sequence[float]) -> Trend:
    """Of minutes after the warm-up."""
    if len(figures) < MIN_MINUTES:
        return Trend(figures[0], figures[-1], judged=False)
    slope, start = statistics.linear_regression(range(len(figures)), figures)
    return Trend(start, start + slope * (len(figures) - 1), judged=True)


def verdict(
    minutes: Sequence[Minute], faults: Sequence[str], counts: Counter[tuple[str, str]], quota_mib: float
) -> tuple[str, list[str]]:
    """The JSON line, and all that is wrong. `quota_mib`: what may be stored, of one tenant."""
    counted = after_warm_up(minutes)
    service = trend([minute.reading.rss_mib for minute in counted])
    redis = trend([minute.reading.redis_rss_mib for minute in counted])
    per_byte = trend([minute.redis_per_stored_byte for minute in counted])
    wrong = list(faults)
    if not service.flat:
        wrong.append(f"the service's memory went from {service.start:.0f} to {service.end:.0f} MiB")
    if not per_byte.flat:
        wrong.append(f"what Redis allocates per stored byte went from {per_byte.start:.3f} to {per_byte.end:.3f} bytes")
    most_mib = REDIS_FACTOR * quota_mib + REDIS_BASE_MIB
    if redis.end > most_mib:
        wrong.append(f"Redis has {redis.end:.0f} MiB, more than the {most_mib:.0f} that {quota_mib:.0f} MiB may take")
    first, last = counted[0].reading, counted[-1].reading
    for what, before, after in (
        ("files", first.num_files, last.num_files),
        ("threads", first.num_threads, last.num_threads),
    ):
        if after > before + MORE_HANDLES:
            wrong.append(f"open {what} went from {before} to {after}")
    figures = {
        "ok": not wrong,
        "minutes": len(minutes),
        "done": sum(counts.values()),
        "saved_turns": minutes[-1].num_saved,
        "oracle_checked": minutes[-1].num_checked,
        "oracle_worst_gap": round(minutes[-1].worst_gap, 3),
        "preemptions": last.preemptions,
        **{
            name: {**asdict(found), "change": round(found.change, 4)}
            for name, found in (
                ("service_mib", service),
                ("redis_mib", redis),
                ("redis_bytes_per_stored_byte", per_byte),
            )
        },
        "ended": {f"{name}: {how}": count for (name, how), count in sorted(counts.items())},
        "faults": wrong[:20],
    }
    return json.dumps(figures), wrong
