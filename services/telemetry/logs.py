"""Log lines as text or JSON. JSON has the fields below, and nothing else that a record may carry."""

from __future__ import annotations

import datetime
import json
import logging
from typing import Literal

LogFormat = Literal["text", "json"]

OURS = "services"
TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"

FIELDS = (
    "request_id",
    "trace_id",
    "session",
    "recipe",
    "sla_class",
    "status",
    "sla_met",
    "prompt_tokens",
    "restored_tokens",
    "generated_tokens",
    "queue_ms",
    "ttft_ms",
    "tpot_ms",
    "predicted_ttft_ms",
    "save_ms",
    "total_ms",
    "attempt",
)
"""What `extra` may say, by these names."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        at = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str, log_format: LogFormat) -> None:
    """How this process logs, to standard error. For programs, once, at their start."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level, handlers=[handler])


def configure_hosted(level: str, log_format: LogFormat) -> None:
    """The same in a process whose host has said how it logs: only our lines, and as the host likes unless in JSON."""
    ours = logging.getLogger(OURS)
    ours.setLevel(level)
    if log_format == "json":
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        ours.addHandler(handler)
        ours.propagate = False
