"""JSON Web Tokens: signed by somebody else, checked here with public keys from a file. Nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from services.config import ServeConfig
from services.gateway.identity import Identity, is_tenant
from swaa_runtime.errors import InvalidRequest

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""All are asymmetric: this service could not make a token if it wanted to. `none` and HMAC are not to be had."""

KEY_TYPES = ("RSA", "EC", "OKP")
MAX_SUBJECT_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must say.

    Attributes:
        algorithms: of ALGORITHMS, those that are taken.
        tenant_claim: which claim names the tenant.
        leeway_s: by how much clocks may differ.
    """

    issuer: str
    audience: str
    algorithms: tuple[str, ...]
    tenant_claim: str
    leeway_s: float

    @classmethod
    def of(cls, config: ServeConfig) -> TokenRules:
        """The rules that settings make. Raises InvalidRequest for one that is missing or unknown."""
        for name in ("jwt_issuer", "jwt_audience", "jwt_tenant_claim"):
            if not getattr(config, name):
                raise InvalidRequest(
                    name, "", "must be given with jwt_keys_file: else any token of the signer would do"
                )
        algorithms = tuple(name.strip() for name in config.jwt_algorithms.split(","))
        for name in algorithms:
            if name not in ALGORITHMS:
                raise InvalidRequest("jwt_algorithms", name, f"must be of {', '.join(ALGORITHMS)}")
        return cls(config.jwt_issuer, config.jwt_audience, algorithms, config.jwt_tenant_claim, config.jwt_leeway_s)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key, and the algorithm that it is for; None: any that fits it."""

    key: Any
    algorithm: str | None = None


class TokenVerifier:
    """Checks tokens by public keys. `keys`: by their id; "" is the id of the one key of a PEM file."""

    def __init__(self, keys: Mapping[str, PublicKey], rules: TokenRules) -> None:
        self._keys = keys
        self._rules = rules

    def identify(self, token: str) -> Identity | None:
        """Whose token it is; None if it is wrong in any way: signature, algorithm, times, issuer, audience, tenant."""
        rules = self._rules
        try:
            public = self._key_of(jwt.get_unverified_header(token))
            if public is None:
                return None
            claims: dict[str, Any] = jwt.decode(
                token,
                public.key,
                algorithms=[name for name in rules.algorithms if public.algorithm in (None, name)],
                audience=rules.audience,
                issuer=rules.issuer,
                leeway=rules.leeway_s,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
        except (jwt.PyJWTError, TypeError, ValueError, RecursionError):  # of a key that does not fit, too
            return None
        tenant, subject = claims.get(rules.tenant_claim), claims.get("sub", "")
        if not isinstance(tenant, str) or not is_tenant(tenant):
            return None
        shown = "".join(filter(str.isprintable, str(subject)))
        return Identity(tenant, shown[:MAX_SUBJECT_CHARACTERS])

    def _key_of(self, header: Mapping[str, Any]) -> PublicKey | None:
        """By the id that the header names; without one, and with one key, that."""
        only = next(iter(self._keys.values())) if len(self._keys) == 1 else None
        if "kid" not in header or "" in self._keys:
            return only
        return self._keys.get(str(header["kid"]))


def read_verifier(path: Path, rules: TokenRules) -> TokenVerifier:
    """A PEM file with one public key, or a JSON Web Key Set. Raises InvalidRequest naming file and field."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise InvalidRequest(str(path), exc.strerror, "must be a readable file with public keys") from None
    keys = _key_set(data, path) if data.lstrip().startswith(b"{") else {"": PublicKey(_pem(data, path))}
    return TokenVerifier(keys, rules)


def _pem(data: bytes, path: Path) -> Any:
    try:
        return load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):  # their text may have parts of what was read
        raise InvalidRequest(str(path), "its content", "must be one public key in PEM, or a JSON Web Key Set") from None


def _key_set(data: bytes, path: Path) -> dict[str, PublicKey]:
    try:
        entries = [entry for entry in json.loads(data)["keys"] if entry.get("use", "sig") == "sig"]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise InvalidRequest(str(path), "its content", 'must be a JSON Web Key Set: {"keys": [...]}') from None
    keys: dict[str, PublicKey] = {}
    for number, entry in enumerate(entries):
        field, kid = f"{path}: keys.{number}", str(entry.get("kid", ""))
        if entry.get("kty") not in KEY_TYPES or "d" in entry:
            raise InvalidRequest(
                f"{field}.kty", entry.get("kty"), f"must be a public key, one of {', '.join(KEY_TYPES)}"
            )
        if kid in keys or (not kid and len(entries) > 1):
            raise InvalidRequest(f"{field}.kid", kid, "must be there, and of one key only")
        algorithm = entry.get("alg")
        if algorithm not in (None, *ALGORITHMS):
            raise InvalidRequest(f"{field}.alg", algorithm, f"must be of {', '.join(ALGORITHMS)}")
        try:
            keys[kid] = PublicKey(jwt.PyJWK(entry).key, algorithm)
        except (jwt.PyJWTError, TypeError, ValueError):
            raise InvalidRequest(field, "its content", "must be a key") from None
    if not keys:
        raise InvalidRequest(f"{path}: keys", [], "must have at least one key for signatures")
    return keys
