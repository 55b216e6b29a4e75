"""Who asks, and what new sessions are called."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass

from blake3 import blake3

from services.gateway.sla import DEFAULT_TENANT

TENANT_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
"""What a tenant may be called: its name is part of the store's keys."""

SESSION_ID_BYTES = 16
KEYED_SESSION_CONTEXT = "swaa 2026-11-26 session id of an idempotency key"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. Made by an `Authenticator` from a credential, and from nothing else that a request says.

    Attributes:
        tenant: whose sessions, quotas and policies hold.
        subject: which of the tenant's credentials it was, for logs: the key's id, or the token's `sub`. Never a secret.
        operator: whether it may read figures of all tenants (/metrics).
    """

    tenant: str
    subject: str = ""
    operator: bool = False


ANONYMOUS = Identity(DEFAULT_TENANT, operator=True)
"""Everybody, where nothing authenticates: there is one tenant, and all is its own."""


def is_tenant(name: object) -> bool:
    """Whether something can be a tenant's name."""
    return isinstance(name, str) and re.fullmatch(TENANT_PATTERN, name) is not None


def new_session_id() -> str:
    """An id nobody can guess."""
    return uuid.uuid4().hex


def keyed_session_id(tenant: str, idempotency_key: str) -> str:
    """The id of the session that a request with this key opens: the same for each attempt, for nobody else.

    As hard to guess as the key.
    """
    owner = json.dumps([tenant, idempotency_key]).encode()
    return blake3(owner, derive_key_context=KEYED_SESSION_CONTEXT).hexdigest(SESSION_ID_BYTES)
