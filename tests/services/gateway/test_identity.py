"""What sessions are called: at random, or by the key of the request that opens them."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.identity import keyed_session_id, new_session_id

names = st.text()


def test_new_ids_differ() -> None:
    assert len({new_session_id() for _ in range(100)}) == 100


@given(names, names)
def test_a_key_always_names_the_same_session(tenant: str, key: str) -> None:
    session_id = keyed_session_id(tenant, key)
    assert session_id == keyed_session_id(tenant, key)
    assert re.fullmatch("[0-9a-f]{32}", session_id)
    assert len(session_id) == len(new_session_id())


@given(st.tuples(names, names), st.tuples(names, names))
def test_other_tenants_and_other_keys_name_other_sessions(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (keyed_session_id(*one) == keyed_session_id(*other)) == (one == other)
