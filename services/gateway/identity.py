"""Who asks, and what new sessions are called."""

from __future__ import annotations

import json
import uuid

from blake3 import blake3

TENANT = "default"  # authentication, and with it more tenants, is not part of this service yet


SESSION_ID_BYTES = 16
KEYED_SESSION_CONTEXT = "swaa 2026-11-26 session id of an idempotency key"


def new_session_id() -> str:
    """An id nobody can guess."""
    return uuid.uuid4().hex


def keyed_session_id(tenant: str, idempotency_key: str) -> str:
    """The id of the session that a request with this key opens: the same for each attempt, for nobody else.

    As hard to guess as the key.
    """
    owner = json.dumps([tenant, idempotency_key]).encode()
    return blake3(owner, derive_key_context=KEYED_SESSION_CONTEXT).hexdigest(SESSION_ID_BYTES)
