"""`/v1/models`: the one model that is served, under the name that the gateway was started with."""

from __future__ import annotations

from typing import Any

from services.gateway.http.schema import ModelNotFound
from services.gateway.http.turn import Served


def check_model(served: Served, name: str) -> None:
    """Raise ModelNotFound unless it is the served one."""
    if name != served.model:
        raise ModelNotFound("model", name, f"is not served here, but {served.model!r} is")


def model_object(served: Served, started_at_s: int, max_model_tokens: int) -> dict[str, Any]:
    """The model in OpenAI's words; `max_model_len` is vLLM's name for the longest session."""
    return {
        "id": served.model,
        "object": "model",
        "created": started_at_s,
        "owned_by": "swaa",
        "max_model_len": max_model_tokens,
    }
