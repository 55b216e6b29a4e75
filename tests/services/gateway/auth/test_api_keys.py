"""Keys: what is kept of them, and which are taken."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.gateway.auth.api_keys import FORM, KeyRing, digest_of, new_key
from services.gateway.identity import Identity

NOW = datetime(2026, 11, 26, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_a_key_is_its_tenants_and_is_not_kept() -> None:
    credential, kept = new_key("acme", NOW, name="ci")
    assert FORM.fullmatch(credential)
    assert KeyRing([kept]).identify(credential, NOW) == (Identity("acme", kept.id), "")
    assert credential[18:] not in kept.model_dump_json(), "the secret"
    assert new_key("acme", NOW)[0] != credential


def test_only_an_operators_key_is_an_operators() -> None:
    credential, kept = new_key("acme", NOW, operator=True)
    identity, _ = KeyRing([kept]).identify(credential, NOW)
    assert identity == Identity("acme", kept.id, operator=True)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expires_at": NOW}, "expired"),
        ({"revoked_at": NOW - HOUR}, "revoked"),
        ({"revoked_at": NOW - HOUR, "expires_at": NOW + HOUR}, "revoked"),
        ({"expires_at": NOW + HOUR}, ""),
    ],
)
def test_expired_and_revoked_keys_are_not_taken(changes: dict[str, datetime], reason: str) -> None:
    credential, kept = new_key("acme", NOW - HOUR)
    identity, told = KeyRing([kept.model_copy(update=changes)]).identify(credential, NOW)
    assert (identity is None, told) == (bool(reason), reason)


def test_a_known_id_with_another_secret_is_unknown() -> None:
    credential, kept = new_key("acme", NOW)
    other, _ = new_key("acme", NOW)
    ring = KeyRing([kept])
    for wrong in (f"swaa_{kept.id}_{other[-64:]}", credential[:-1], credential + "0", credential.upper(), kept.digest):
        assert ring.identify(wrong, NOW) == (None, "unknown")


@given(st.text())
def test_no_text_is_a_key_by_chance(text: str) -> None:
    _, kept = new_key("acme", NOW)
    assert KeyRing([kept]).identify(text, NOW) == (None, "unknown")


def test_unknown_keys_are_compared_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that how long it takes does not say which ids there are."""
    credential, kept = new_key("acme", NOW)
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("services.gateway.auth.api_keys.hmac.compare_digest", compare)
    ring = KeyRing([kept.model_copy(update={"revoked_at": NOW})])
    for given_ in (credential, new_key("acme", NOW)[0], "nonsense"):
        ring.identify(given_, NOW)
    assert [one for one, _ in compared] == [digest_of(credential), compared[1][0], digest_of("nonsense")]
    assert len(compared) == 3


@pytest.mark.parametrize("tenant", ["", "a b", "a" * 65, "a:b", "{a}", "a\n", "ä"])
def test_what_cannot_be_a_tenant_gets_no_key(tenant: str) -> None:
    with pytest.raises(ValidationError):
        new_key(tenant, NOW)
