"""Who asks, and what new sessions are called."""

from __future__ import annotations

import uuid

TENANT = "default"  # authentication, and with it more tenants, is not part of this service yet


def new_session_id() -> str:
    """An id nobody can guess."""
    return uuid.uuid4().hex
