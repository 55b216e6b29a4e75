"""What is lost is seen: turns, versions, sessions; in originals and copies. And what the oracle would not have said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.client import Session, SessionResult
from services.sessions.store import Manifest
from swaa_runtime.recipe import Recipe
from tests.services.sessions.builders import make_session
from tests.soak.ledger import Ledger, OneShot, Told, lost
from tests.soak.oracle import Oracle

TWO_TURNS = make_session(version=2).manifest


def decode(token_ids: Sequence[int]) -> str:
    return " ".join(map(str, token_ids))


def generated(manifest: Manifest, index: int) -> tuple[int, ...]:
    turn = manifest.turns[index]
    return manifest.token_ids[turn.generated_start : turn.stop]


def ledger() -> Ledger:
    """Of a client that was told both turns of TWO_TURNS, the second over HTTP."""
    told = Ledger()
    first, second = generated(TWO_TURNS, 0), generated(TWO_TURNS, 1)
    for version, turn in ((1, Told("full", first, "", True)), (2, Told("full", None, decode(second), True))):
        told.acknowledge(SessionResult("chat", version, True, "", "none", 0), turn)
    return told


def test_what_is_stored_as_it_was_told_is_not_lost() -> None:
    assert lost(ledger().sessions["chat"], TWO_TURNS, decode) == []


def test_a_later_turn_that_nobody_was_told_of_is_no_loss() -> None:
    assert lost(ledger().sessions["chat"], make_session(version=3).manifest, decode) == []


def test_a_session_that_is_gone_or_went_back_is_lost() -> None:
    known = ledger().sessions["chat"]
    assert lost(known, None, decode) == ["session chat is gone at version 2"]
    [fault] = lost(known, make_session(version=1).manifest, decode)
    assert fault.endswith("is at version 1, 2 was acknowledged")


@pytest.mark.parametrize("index", [0, 1])
def test_another_token_is_lost(index: int) -> None:
    at = TWO_TURNS.turns[index].stop
    assert at is not None
    tokens = list(TWO_TURNS.token_ids)
    tokens[at - 1] += 1
    [fault] = lost(ledger().sessions["chat"], replace(TWO_TURNS, token_ids=tuple(tokens)), decode)
    assert f"turn {index} is not what was streamed" in fault


def test_a_copy_has_the_turns_of_its_source_and_its_own() -> None:
    told = ledger()
    told.copied("chat", Session("copy", 1, 32, 2, "full", 0, 0.0, 0.0, 1.0))
    three = make_session("copy", version=3).manifest
    told.acknowledge(SessionResult("copy", 2, True, "", "hot", 0), Told("full", generated(three, 2), "", True))
    copy = told.sessions["copy"]
    assert set(copy.turns) == {0, 1, 2}
    assert lost(copy, replace(three, version=2), decode) == []


@pytest.mark.model
def test_the_oracle_knows_an_answer_that_is_none(tiny_folder: Path) -> None:
    oracle = Oracle(tiny_folder, torch.float32, {"full": Recipe()})
    prompt = tuple(range(100, 120))
    likeliest: list[int] = []
    with torch.no_grad():
        for _ in range(4):
            logits = oracle.logits((*prompt, *likeliest, 0), "full", len(prompt) + len(likeliest))
            likeliest.append(int(logits[-1].argmax()))
    assert oracle.check_one_shot(OneShot("full", prompt, tuple(likeliest))) == []
    [fault] = oracle.check_one_shot(OneShot("full", prompt, (*likeliest[:-1], likeliest[-1] ^ 1)))
    assert "below the oracle's likeliest" in fault
    assert oracle.num_checked == 2
