"""What the store's keys are called. All of one tenant are on one node: the braces are Redis's hash tag.

    swaa:{tenant}:session:<session>   hash: version, expires_ms, segments, bytes, data (see `redis_scripts`)
    swaa:{tenant}:prefix:<prefix>     hash: ttl_ms, segments_ttl_ms, segments, bytes, data
    swaa:{tenant}:segment:<digest>    bytes of one segment: immutable, shared by all that have the same
    swaa:{tenant}:users:<digest>      sorted set of those that use the segment (`session:<session>`, `prefix:<prefix>`)
                                      by the time until which they do: the segment lives as long as the last of them
    swaa:{tenant}:index               sorted set of sessions by the time of their last save
    swaa:{tenant}:prefixes            sorted set of prefixes by the time of their last use
    swaa:{tenant}:lease:<session>     who uses the session now
    swaa:{tenant}:fence:<session>     hash: fence, that is the number of its last lease, and owner
    swaa:{tenant}:ledger              sorted set of all of the first three, as kind:id:bytes, by the time they end
    swaa:{tenant}:buckets             what requests have used of its quota; :leases, :prefills: see `redis_quotas`
    swaa:{tenant}:bytes               sum of the ledger's bytes, those that have ended since included

Times are Redis's own, in milliseconds since the epoch; but `expires_ms` and `index` go by the callers' clocks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from swaa_runtime.errors import InvalidRequest

_IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class TenantKeys:
    """The keys of one tenant. Methods that take an id raise InvalidRequest for what cannot be an id."""

    root: str

    @classmethod
    def of(cls, prefix: str, tenant: str) -> TenantKeys:
        """Keys that begin with `prefix`. Raises InvalidRequest if `tenant` cannot be an id."""
        return cls(f"{prefix}:{{{checked('tenant', tenant)}}}:")

    def session(self, session_id: str) -> str:
        """The session's hash."""
        return self.root + "session:" + checked("session", session_id)

    def prefix(self, prefix_id: str) -> str:
        """The prefix's hash."""
        return self.root + "prefix:" + checked("prefix", prefix_id)

    def segment(self, digest: str) -> str:
        """The segment's bytes."""
        return self.root + "segment:" + digest

    def lease(self, session_id: str) -> str:
        """The owner of the session's lease."""
        return self.root + "lease:" + checked("session", session_id)

    def fence(self, session_id: str) -> str:
        """The hash with the number of the session's last lease."""
        return self.root + "fence:" + checked("session", session_id)

    @property
    def index(self) -> str:
        """Sessions by their last save."""
        return self.root + "index"

    @property
    def prefixes(self) -> str:
        """Prefixes by their last use."""
        return self.root + "prefixes"

    @property
    def buckets(self) -> str:
        """What is left of the tenant's requests and prompt tokens."""
        return self.root + "buckets"

    @property
    def leases(self) -> str:
        """The tenant's requests that run."""
        return self.root + "leases"

    @property
    def prefills(self) -> str:
        """Of these, those without a token yet."""
        return self.root + "prefills"

    @property
    def ledger(self) -> str:
        """All that counts in the quota."""
        return self.root + "ledger"


def checked(field: str, identifier: str) -> str:
    """`identifier`, if it can be part of a key. Raises InvalidRequest that names `field` if not."""
    if not _IDENTIFIER.fullmatch(identifier):
        raise InvalidRequest(field, identifier, "must be 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return identifier
