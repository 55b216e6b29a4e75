"""Somebody who signs tokens."""

from __future__ import annotations

import json
import time
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://login.example", "swaa"
JWK_OF = {"RSA": RSAAlgorithm.to_jwk, "EC": ECAlgorithm.to_jwk, "OKP": OKPAlgorithm.to_jwk}


@cache
def private_key(kind: str, number: int) -> Any:
    """RSA, EC or OKP; another one for another number."""
    if kind == "RSA":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return ec.generate_private_key(ec.SECP256R1()) if kind == "EC" else ed25519.Ed25519PrivateKey.generate()


def public_pem(kind: str) -> bytes:
    return bytes(private_key(kind, 0).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def private_pem(kind: str) -> bytes:
    return bytes(private_key(kind, 0).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def jwk(kind: str, number: int = 0, **more: Any) -> dict[str, Any]:
    """The public key as a JSON Web Key."""
    told: Any = JWK_OF[kind](private_key(kind, number).public_key())  # type: ignore[operator]
    return {**json.loads(told), **more}


def claims(**changes: Any) -> dict[str, Any]:
    """Of a token that is right, but for the changes; None leaves one out."""
    now = time.time()
    all_ = {"iss": ISSUER, "aud": AUDIENCE, "exp": now + 600, "iat": now, "sub": "ann", "tenant": "acme", **changes}
    return {name: value for name, value in all_.items() if value is not None}


def token(algorithm: str = "EdDSA", kind: str = "OKP", number: int = 0, kid: str = "", **changes: Any) -> str:
    headers = {"kid": kid} if kid else None
    return jwt.encode(claims(**changes), private_key(kind, number), algorithm=algorithm, headers=headers)
