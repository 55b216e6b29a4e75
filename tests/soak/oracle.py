"""What greedy answers should have been: dense attention with DESIGN §3's mask over the whole sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from services.sessions.store import Manifest
from swaa_runtime.attention.oracle import OracleContext
from swaa_runtime.model.loader import load_model
from swaa_runtime.recipe import Recipe
from swaa_runtime.visibility import Turn
from tests.soak.ledger import KnownSession, OneShot

MAX_TOKENS = 3000
"""Of a sequence: dense attention holds all pairs of it."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.75}
"""How much less likely, in logits, a token may be than the likeliest: rounding, and no more, may turn near-ties.

Six steps of a bfloat16 logit: the engine's chunks and the oracle's single pass round differently in all layers.
"""


class Oracle:
    """The model of a service once more, in the same dtype, with the oracle's attention."""

    def __init__(self, folder: Path, dtype: torch.dtype, recipes: Mapping[str, Recipe]) -> None:
        self._loaded = load_model(folder, dtype, torch.device("cpu"), {})
        self._recipes = recipes
        self._tolerance = TOLERANCE[dtype]
        self.worst_gap = 0.0
        self.num_checked = 0

    def check_one_shot(self, answer: OneShot) -> list[str]:
        """What is wrong with an answer; empty if nothing is, or it is too long to tell."""
        start, tokens = len(answer.prompt), (*answer.prompt, *answer.token_ids)
        turn = Turn(0, start, len(tokens))
        return self._check(f"an answer of {start} prompt tokens", answer.recipe, tokens, [turn])

    def check_turn(self, known: KnownSession, index: int, stored: Manifest) -> list[str]:
        """The same of a turn of a session: later ones do not count, earlier ones are given."""
        turns = stored.turns[: index + 1]
        what = f"session {known.session_id}: turn {index}"
        return self._check(what, known.turns[index].recipe, stored.token_ids[: turns[-1].stop], turns)

    @torch.no_grad()
    def logits(self, token_ids: Sequence[int], recipe: str, start: int, turns: Sequence[Turn] = ()) -> torch.Tensor:
        """Logits before each token from `start` on, [n, vocab_size]; the last turn, generated there, is added."""
        rules = self._recipes[recipe].resolve(self._loaded.shape.num_layers)
        begin = turns[-1].stop if turns else 0
        assert begin is not None
        context = OracleContext(rules, [*turns, Turn(begin, start)])
        ids = torch.tensor([list(token_ids)])
        model = self._loaded.model
        hidden = model.base_model(input_ids=ids, use_cache=False, swaa_context=context).last_hidden_state[0]
        found: torch.Tensor = model.get_output_embeddings()(hidden[start - 1 : -1]).float()
        return found

    def _check(self, what: str, recipe: str, token_ids: Sequence[int], turns: Sequence[Turn]) -> list[str]:
        if len(token_ids) > MAX_TOKENS or turns[-1].generated_start == len(token_ids):
            return []
        start = turns[-1].generated_start
        logits = self.logits(token_ids, recipe, start, turns[:-1])
        chosen = logits.gather(1, torch.tensor(token_ids[start:])[:, None])[:, 0]
        gap = (logits.max(dim=-1).values - chosen).max().item()
        self.worst_gap = max(self.worst_gap, gap)
        self.num_checked += 1
        if gap <= self._tolerance:
            return []
        return [f"{what}, recipe {recipe}: a token is {gap:.2f} below the oracle's likeliest"]
