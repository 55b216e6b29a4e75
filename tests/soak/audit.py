"""Whether what Redis holds is consistent, by reading all of it. Knows the layout (`redis_keys`), not the scripts."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import redis

from services.errors import SessionCorrupt
from services.sessions.codec import decode_manifest
from services.sessions.store import Manifest

_KEY = re.compile(r"(swaa:\{[^}]+\}:)(\w+)(?::(.*))?", re.DOTALL)
SOON_MS = 3000
"""What ends this soon may be gone by the time it is looked at."""

LOOK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found. `faults`: what contradicts itself, a line each; `unnamed`: segments that no commit names."""

    sessions: Mapping[str, Manifest]
    num_prefixes: int
    num_segments: int
    num_unnamed: int
    stored_bytes: int
    faults: tuple[str, ...]


@dataclass(slots=True)
class _Tenant:
    """All keys of one tenant, by kind and id."""

    root: str
    ids: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def audit(client: redis.Redis) -> Audit:
    """Read all of it. What is inconsistent at two looks in a row is a fault; one look may fall between two expiries."""
    first = _look(client)
    if not first.faults:
        return first
    time.sleep(LOOK_AGAIN_S)
    second = _look(client)
    faults = tuple(fault for fault in second.faults if fault in first.faults)
    return Audit(
        second.sessions, second.num_prefixes, second.num_segments, second.num_unnamed, second.stored_bytes, faults
    )


def leases(client: redis.Redis) -> int:
    """How many sessions are in use."""
    return sum(1 for _ in client.scan_iter("swaa:*:lease:*", count=1000))


def _look(client: redis.Redis) -> Audit:
    tenants: dict[str, _Tenant] = {}
    faults: list[str] = []
    for raw in client.scan_iter("swaa:*", count=1000):
        key = raw.decode()
        match = _KEY.fullmatch(key)
        if match is None:
            faults.append(f"{key}: of no known form")
            continue
        root, kind, name = match.groups()
        tenants.setdefault(root, _Tenant(root)).ids[kind].append(name or "")
        if client.pttl(raw) == -1:
            faults.append(f"{key} has no time to live")
    sessions: dict[str, Manifest] = {}
    prefixes = segments = unnamed = stored_bytes = 0
    for tenant in tenants.values():
        books = _Books(client, tenant)
        books.check()
        faults += books.faults
        sessions |= books.sessions
        prefixes += len(tenant.ids["prefix"])
        segments += len(tenant.ids["segment"])
        unnamed += books.num_unnamed
        stored_bytes += books.stored_bytes
    return Audit(sessions, prefixes, segments, unnamed, stored_bytes, tuple(faults))


class _Books:
    """One tenant's: who uses which segment, and what counts how much."""

    def __init__(self, client: redis.Redis, tenant: _Tenant) -> None:
        self._client: Any = client
        self._root, self._ids = tenant.root, tenant.ids
        self._sizes = {name: client.strlen(f"{self._root}segment:{name}") for name in self._ids["segment"]}
        self.sessions: dict[str, Manifest] = {}
        self.faults: list[str] = []
        self.num_unnamed = 0
        self.stored_bytes = 0

    def check(self) -> None:
        """Find what is wrong, and count."""
        self.faults += [f"{self._root}lease:{name} is held, and nothing runs" for name in self._ids["lease"]]
        users = {name: self._users(name) for name in self._ids["users"]}
        stored = {entry for kind in ("session", "prefix") for entry in self._check_owners(kind, users)}
        stored |= {f"segment:{name}:{size}" for name, size in self._sizes.items() if users.get(name)}
        self.num_unnamed = sum(not users.get(name) for name in self._sizes)
        self._check_users(users)
        self._check_ledger(stored)

    def _users(self, segment: str) -> set[str]:
        return {
            name.decode() for name in self._client.zrangebyscore(f"{self._root}users:{segment}", self._now_ms(), "+inf")
        }

    def _check_owners(self, kind: str, users: Mapping[str, set[str]]) -> list[str]:
        entries = []
        for name in self._ids[kind]:
            fields = self._client.hgetall(f"{self._root}{kind}:{name}")
            if not fields:  # it has just expired
                continue
            owner, data = f"{kind}:{name}", fields[b"data"]
            entries.append(f"{owner}:{len(data)}")
            named = dict(re.findall(r"(\w+):(\d+)", fields[b"segments"].decode()))
            if kind == "session":
                self._check_manifest(name, data, fields, named)
            if self._client.zscore(f"{self._root}{'index' if kind == 'session' else 'prefixes'}", name) is None:
                self.faults.append(f"{owner} is in no index")
            for segment, size in named.items():
                if self._sizes.get(segment) != int(size):
                    self.faults.append(f"{owner}: segment {segment} has {self._sizes.get(segment)} bytes, not {size}")
                elif owner not in users.get(segment, ()):
                    self.faults.append(f"{owner}: segment {segment} does not know its user")
        return entries

    def _check_manifest(self, name: str, data: bytes, fields: Mapping[bytes, bytes], named: Mapping[str, str]) -> None:
        try:
            manifest = decode_manifest(data)
        except SessionCorrupt as exc:
            self.faults.append(f"session {name}: {exc}")
            return
        self.sessions[name] = manifest
        if str(manifest.version).encode() != fields[b"version"]:
            self.faults.append(f"session {name}: version {manifest.version} is stored as {fields[b'version']!r}")
        if {ref.segment_id: str(ref.num_bytes) for ref in manifest.segments} != named:
            self.faults.append(f"session {name}: its manifest names other segments than its record")

    def _check_users(self, users: Mapping[str, set[str]]) -> None:
        there = {f"{kind}:{name}" for kind in ("session", "prefix") for name in self._ids[kind]}
        for segment, names in users.items():
            if names and segment not in self._sizes:
                self.faults.append(f"segment {segment} is gone, and has users")
            # A prefix's segments outlive it by a margin, for whoever has just read it: so do its entries as user.
            for name in names - there:
                if not name.startswith("prefix:"):
                    self.faults.append(f"segment {segment} has user {name}, which is gone")

    def _check_ledger(self, stored: set[str]) -> None:
        now_ms = self._now_ms()
        entries = {
            raw.decode(): ends for raw, ends in self._client.zrange(f"{self._root}ledger", 0, -1, withscores=True)
        }
        live = {entry for entry, ends in entries.items() if ends > now_ms + SOON_MS}
        self.faults += [f"{entry} counts, and is not stored" for entry in live - stored]
        self.faults += [f"{entry} is stored, and does not count" for entry in stored - set(entries)]
        total = sum(int(entry.rpartition(":")[2]) for entry in entries)
        counter = int(self._client.get(f"{self._root}bytes") or 0)
        if counter != total:
            self.faults.append(f"{self._root}bytes is {counter}, its entries add up to {total}")
        self.stored_bytes = sum(int(entry.rpartition(":")[2]) for entry in live)

    def _now_ms(self) -> float:
        seconds, microseconds = self._client.time()
        return float(seconds * 1000 + microseconds / 1000)
