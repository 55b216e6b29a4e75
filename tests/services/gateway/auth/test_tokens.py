"""Which tokens are taken: those that the right signer made, for us, for now, of a tenant."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.config import load_config
from services.gateway.auth.tokens import ALGORITHMS, TokenRules, TokenVerifier, read_verifier
from services.gateway.identity import Identity
from swaa_runtime.errors import InvalidRequest

from .signer import AUDIENCE, ISSUER, claims, jwk, private_pem, public_pem, token

RULES = TokenRules(ISSUER, AUDIENCE, ALGORITHMS, "tenant", 5.0)


def verifier(tmp_path: Path, content: bytes | dict[str, Any], rules: TokenRules = RULES) -> TokenVerifier:
    path = tmp_path / "public"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_verifier(path, rules)


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("RS256", "RSA"), ("RS512", "RSA"), ("PS256", "RSA"), ("ES256", "EC"), ("EdDSA", "OKP")]
)
def test_a_token_of_each_kind_of_key(tmp_path: Path, algorithm: str, kind: str) -> None:
    given_ = token(algorithm, kind)
    assert verifier(tmp_path, public_pem(kind)).identify(given_) == Identity("acme", "ann")
    assert verifier(tmp_path, {"keys": [jwk(kind)]}).identify(given_) == Identity("acme", "ann")


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": None},
        {"exp": time.time() - 60},
        {"iss": None},
        {"iss": "https://evil.example"},
        {"aud": None},
        {"aud": "another-service"},
        {"nbf": time.time() + 60},
        {"iat": time.time() + 600},
        {"tenant": None},
        {"tenant": ""},
        {"tenant": "a b"},
        {"tenant": "{x}:session"},
        {"tenant": ["acme"]},
        {"tenant": 7},
        {"exp": "soon"},
        {"sub": 7},
    ],
)
def test_what_a_token_must_say(tmp_path: Path, changes: dict[str, Any]) -> None:
    check = verifier(tmp_path, public_pem("OKP"))
    assert check.identify(token(**changes)) is None
    assert check.identify(token()) is not None


def test_clocks_may_differ_by_the_leeway(tmp_path: Path) -> None:
    late = token(exp=time.time() - 60)
    assert verifier(tmp_path, public_pem("OKP")).identify(late) is None
    patient = TokenRules(ISSUER, AUDIENCE, ALGORITHMS, "tenant", 300.0)
    assert verifier(tmp_path, public_pem("OKP"), patient).identify(late) is not None


def part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def test_algorithms_without_a_private_key_are_refused(tmp_path: Path) -> None:
    """`none`, and an HMAC with the public key as the secret: what libraries have fallen for."""
    pem = public_pem("RSA")
    check = verifier(tmp_path, pem)
    unsigned = f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims())}."
    signed = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims())}"
    mac = base64.urlsafe_b64encode(hmac.digest(pem, signed.encode(), hashlib.sha256)).rstrip(b"=").decode()
    assert check.identify(unsigned) is None
    assert check.identify(f"{signed}.{mac}") is None
    assert check.identify(token("RS256", "RSA")) is not None


def test_only_allowed_algorithms_are_taken(tmp_path: Path) -> None:
    rules = TokenRules(ISSUER, AUDIENCE, ("RS256",), "tenant", 5.0)
    assert verifier(tmp_path, public_pem("RSA"), rules).identify(token("PS256", "RSA")) is None
    assert verifier(tmp_path, public_pem("RSA"), rules).identify(token("RS256", "RSA")) is not None
    bound_key = {"keys": [jwk("RSA", alg="PS256")]}
    assert verifier(tmp_path, bound_key).identify(token("RS256", "RSA")) is None, "the key is for another"
    assert verifier(tmp_path, public_pem("EC")).identify(token("RS256", "RSA")) is None, "another kind of key"


def test_a_key_set_is_asked_by_key_id(tmp_path: Path) -> None:
    check = verifier(tmp_path, {"keys": [jwk("OKP", 0, kid="a"), jwk("OKP", 1, kid="b"), {"kty": "oct", "use": "enc"}]})
    assert check.identify(token(number=0, kid="a")) is not None
    assert check.identify(token(number=1, kid="b")) is not None
    assert check.identify(token(number=1, kid="a")) is None
    assert check.identify(token(number=0, kid="c")) is None
    assert check.identify(token(number=0)) is None, "it does not say which"


def test_another_claim_may_name_the_tenant(tmp_path: Path) -> None:
    rules = TokenRules(ISSUER, AUDIENCE, ALGORITHMS, "https://swaa.example/org", 5.0)
    given_ = token(**{"https://swaa.example/org": "beta"})
    assert verifier(tmp_path, public_pem("OKP"), rules).identify(given_) == Identity("beta", "ann")


@given(st.text(), st.integers(0, 2))
def test_nothing_else_is_a_token(text: str, place: int) -> None:
    check = TokenVerifier({}, RULES)
    parts = token().split(".")
    parts[place] = text
    assert check.identify(".".join(parts)) is None


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_token_that_was_touched_is_none(tmp_path_factory: pytest.TempPathFactory, at: int, flip: int) -> None:
    check = verifier(tmp_path_factory.getbasetemp(), public_pem("OKP"))
    head, body, signature = token().split(".")
    data = bytearray(base64.urlsafe_b64decode(body + "=="))
    data[at % len(data)] ^= flip
    changed = base64.urlsafe_b64encode(bytes(data)).rstrip(b"=").decode()
    assert check.identify(f"{head}.{changed}.{signature}") is None


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "must be one public key in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "must be one public key in PEM"),
        (private_pem("EC"), "must be one public key in PEM"),
        (b"{", "must be a JSON Web Key Set"),
        (b'{"keys": 1}', "must be a JSON Web Key Set"),
        (b'{"keys": [1]}', "must be a JSON Web Key Set"),
        ({"keys": []}, "must have at least one key"),
        ({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}, "must be a public key"),
        ({"keys": [{**jwk("OKP"), "d": "AAAA"}]}, "must be a public key"),
        ({"keys": [{"kty": "RSA"}]}, "must be a key"),
        ({"keys": [jwk("OKP", alg="HS256")]}, "alg is 'HS256'"),
        ({"keys": [jwk("OKP", 0, kid="a"), jwk("OKP", 1, kid="a")]}, "of one key only"),
        ({"keys": [jwk("OKP", 0), jwk("OKP", 1)]}, "kid is ''"),
    ],
)
def test_a_file_that_is_not_of_public_keys(tmp_path: Path, content: Any, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as caught:
        verifier(tmp_path, content)
    assert "c2VjcmV0" not in str(caught.value)


def test_rules_are_complete() -> None:
    given_ = {"jwt_keys_file": Path("k"), "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
    assert TokenRules.of(load_config(**given_)).algorithms == ("RS256", "ES256", "EdDSA")
    for missing in ("jwt_issuer", "jwt_audience"):
        with pytest.raises(InvalidRequest, match=f"{missing} is ''"):
            TokenRules.of(load_config(**{**given_, missing: ""}))
    for algorithms in ("HS256", "none", "RS256,HS256", ""):
        with pytest.raises(InvalidRequest, match="jwt_algorithms is"):
            TokenRules.of(load_config(**given_, jwt_algorithms=algorithms))
