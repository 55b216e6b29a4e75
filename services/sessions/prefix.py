"""Names of prefix states: equal names, equal states. Pure.

KV after the first n tokens of a prompt is a function of those tokens, of which of them looked back (tails and generated
tokens of turns so far), of recipe, model and format. A chain of hashes over pieces of `piece_tokens` tokens names the
state at every multiple of it in one pass:

    h[0] = H(scope, model, format, recipe)         h[k] = H(h[k-1], piece k: its token ids, its spans that look back)

A recipe's adapter applies from one position on, which depends on how long the prompt is: so that is part of h[0].
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence

from services.sessions.policy import SessionPolicy
from swaa_runtime.recipe import Recipe
from swaa_runtime.visibility import Turn, adapter_start

ID_BYTES = 16


def prefix_scope(tenant: str, session_id: str, policy: SessionPolicy) -> str:
    """Who may find a state: all sessions of the tenant, or, if they share none, only the session that saved it."""
    return json.dumps([tenant] if policy.prefix_ttl_s else [tenant, session_id])


def prefix_ids(
    scope: str,
    model_fingerprint: str,
    policy: SessionPolicy,
    recipe: Recipe,
    token_ids: Sequence[int],
    turns: Sequence[Turn],
) -> list[tuple[int, str]]:
    """(number of tokens, id) of the prefix states that these tokens go through, at multiples of `checkpoint_tokens`.

    Args:
        scope: salts the chain, so that ids of one tenant say nothing about another's (`prefix_scope`).
        turns: the turns of which `token_ids` are the beginning; of the last, only its prompt is known.
    """
    if not policy.checkpoint_tokens:
        return []
    piece_tokens = policy.checkpoint_tokens
    identity: list[object] = [scope, model_fingerprint, policy.kv_format, recipe.to_mapping()]
    if recipe.adapter is not None:
        identity.append(adapter_start(recipe.window, turns))
    salt = json.dumps(identity, sort_keys=True)
    link = hashlib.blake2b(salt.encode(), digest_size=ID_BYTES).digest()
    spans = _spans_that_look_back(recipe, turns)
    named: list[tuple[int, str]] = []
    for stop in range(piece_tokens, len(token_ids) + 1, piece_tokens):
        start = stop - piece_tokens
        clipped = [(max(low, start), min(high, stop)) for low, high in spans if low < stop and high > start]
        piece = array("q", [*token_ids[start:stop], *(edge for span in clipped for edge in span)])
        link = hashlib.blake2b(link + piece.tobytes(), digest_size=ID_BYTES).digest()
        named.append((stop, link.hex()))
    return named


def _spans_that_look_back(recipe: Recipe, turns: Sequence[Turn]) -> list[tuple[int, int]]:
    """Maximal runs of positions [low, high) at which layers that look back see everything (`visibility.looks_back`)."""
    runs: list[tuple[int, int]] = []
    for turn in turns:
        low, high = max(turn.start, turn.generated_start - recipe.full_tail), turn.generated_start
        if recipe.full_decode and turn.stop is not None:
            high = turn.stop
        if runs and runs[-1][1] == low:
            runs[-1] = (runs[-1][0], high)
        elif low < high:
            runs.append((low, high))
    return runs
