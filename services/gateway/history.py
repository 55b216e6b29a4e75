"""What saved KV there is for a turn's tokens, recipe by recipe: the session's own, or the start of another's prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from services.gateway.catalog import NamedRecipe
from services.restore_plan import SavedState
from services.sessions.policy import SessionPolicy
from services.sessions.prefix import prefix_ids, prefix_scope
from services.sessions.store import Manifest, PrefixStore
from swaa_runtime.visibility import Turn


def session_state(manifest: Manifest | None, named: NamedRecipe) -> SavedState | None:
    """The KV that a session was saved with, if it is of this recipe: under another, its history is recomputed."""
    if manifest is None or manifest.recipe != named.recipe or manifest.num_kv_tokens == 0:
        return None
    return SavedState("session", manifest.num_kv_tokens, manifest.segments, manifest.kv_format)


async def saved_states(
    store: PrefixStore,
    tenant: str,
    session_id: str,
    policy: SessionPolicy,
    model_fingerprint: str,
    recipes: Iterable[NamedRecipe],
    manifest: Manifest | None,
    token_ids: Sequence[int],
    turns: Sequence[Turn],
) -> dict[str, SavedState]:
    """By recipe name, the longest state that is saved for these tokens; recipes without one are left out.

    Args:
        token_ids: history and prompt; turns: spans of both, the last one open.
    Raises:
        StoreUnavailable: if the store does not answer.
    """

    async def longest(named: NamedRecipe) -> SavedState | None:
        own = session_state(manifest, named)
        if own is not None or not policy.checkpoint_tokens or len(token_ids) <= policy.checkpoint_tokens:
            return own
        scope = prefix_scope(tenant, session_id, policy)
        ids = await asyncio.to_thread(
            prefix_ids,
            scope,
            model_fingerprint,
            policy,
            named.recipe,
            token_ids[:-1],
            turns,  # one is left to compute
        )
        found = await store.find_prefix(tenant, [prefix_id for _, prefix_id in reversed(ids)])
        if found is None:
            return None
        return SavedState("prefix", found.num_tokens, found.segments, policy.kv_format, found.prefix_id)

    all_named = list(recipes)
    found = await asyncio.gather(*(longest(named) for named in all_named))
    return {named.name: state for named, state in zip(all_named, found, strict=True) if state is not None}
