"""How sessions are kept: the choices of whoever runs the service."""

from __future__ import annotations

from dataclasses import dataclass

from services.sessions.store import KVFormat


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """Choices that gateways and replicas of one deployment share.

    Attributes:
        ttl_s: seconds a session lives after its last turn.
        kv_format: how KV is stored.
        checkpoint_tokens: while a prompt is prefilled, its state is saved at multiples of this; 0: never.
        prefix_ttl_s: seconds for which other sessions of the tenant may start from such a state; 0: not at all, a
            checkpoint is dropped when its turn ends.
    """

    ttl_s: float
    kv_format: KVFormat = "raw"
    checkpoint_tokens: int = 0
    prefix_ttl_s: float = 0.0
