"""API keys: as clients have them, and as they are kept.

    swaa_<id>_<secret>      12 and 64 hex digits; a fixed form that scanners of leaked secrets can look for

A key's secret is 256 random bits, so nobody can try them all: a plain fast digest is as good as a slow one here, and a
slow one (bcrypt, argon2) would let strangers keep our processors busy. Slow digests are for passwords, which people
choose. Nor does a digest need a salt: no two secrets are equal.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.gateway.identity import TENANT_PATTERN, Identity

PREFIX = "swaa_"
FORM = re.compile(r"swaa_([0-9a-f]{12})_[0-9a-f]{64}")
ID_BYTES, SECRET_BYTES = 6, 32
NO_DIGEST = "0" * 64
"""Of a key that nobody has: what unknown ids are compared with, so that they take as long as known ones."""

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ApiKey(BaseModel):
    """A key as it is kept. `digest`: SHA-256 of the key as its client has it, in hex; the key itself is nowhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    tenant: Annotated[str, Field(pattern=TENANT_PATTERN)]
    digest: Hex
    created_at: AwareDatetime
    name: Annotated[str, Field(max_length=100)] = ""
    operator: bool = False
    expires_at: AwareDatetime | None = None
    revoked_at: AwareDatetime | None = None

    def state(self, now: datetime) -> str:
        """active, expired or revoked."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


def new_key(
    tenant: str, now: datetime, name: str = "", expires_at: datetime | None = None, operator: bool = False
) -> tuple[str, ApiKey]:
    """A key for a client, and how it is kept. Raises pydantic.ValidationError for what cannot be a tenant or a name."""
    key_id = secrets.token_hex(ID_BYTES)
    credential = f"{PREFIX}{key_id}_{secrets.token_hex(SECRET_BYTES)}"
    kept = ApiKey(
        id=key_id,
        tenant=tenant,
        digest=digest_of(credential),
        created_at=now,
        name=name,
        operator=operator,
        expires_at=expires_at,
    )
    return credential, kept


def digest_of(credential: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(credential.encode("utf-8", "surrogatepass")).hexdigest()


class KeyRing:
    """Keys that are known."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = {key.id: key for key in keys}

    def identify(self, credential: str, now: datetime) -> tuple[Identity | None, str]:
        """Whose key it is; or None, and why it is not to be used: unknown, expired or revoked.

        The same work for whatever it is: one digest, one comparison that takes as long for right as for wrong.
        """
        form = FORM.fullmatch(credential)
        key = self._keys.get(form[1] if form else "")
        is_right = hmac.compare_digest(digest_of(credential), key.digest if key is not None else NO_DIGEST)
        if key is None or not is_right:
            return None, "unknown"
        state = key.state(now)
        return (Identity(key.tenant, key.id, key.operator), "") if state == "active" else (None, state)
