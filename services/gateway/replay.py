"""A saved turn, told again from its tokens: nothing is computed, and no replica is needed.

For a request that is sent again with its idempotency key when its turn has been saved, and for a turn whose replica was
lost when it had saved it.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace

from services.gateway.sla import Objective
from services.replica.job import Done, Event, Job, SessionOutcome
from services.sessions.store import Manifest
from swaa_runtime.detokenizer import Decoder, IncrementalDetokenizer
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.request import FinishReason


def has_saved(manifest: Manifest | None, objective: Objective) -> bool:
    """Whether the session's last turn is the one that this request asks for: an earlier attempt has saved it."""
    key = objective.idempotency_key
    return manifest is not None and key != "" and manifest.idempotency_key == key


def last_prompt(manifest: Manifest) -> tuple[int, ...]:
    """Token ids of the last turn's prompt."""
    last = manifest.turns[-1]
    return manifest.token_ids[last.start : last.generated_start]


def last_answer(manifest: Manifest) -> tuple[int, ...]:
    """Token ids that the last turn generated."""
    return manifest.token_ids[manifest.turns[-1].generated_start :]


def before_last_turn(manifest: Manifest) -> Manifest | None:
    """The session as it was before its last turn, tokens only; None if that turn opened it."""
    last = manifest.turns[-1]
    if not last.start:
        return None
    return replace(
        manifest,
        version=manifest.version - 1,
        token_ids=manifest.token_ids[: last.start],
        turns=manifest.turns[:-1],
        num_kv_tokens=0,
        segments=(),
        idempotency_key="",
    )


def replayed(
    manifest: Manifest,
    job: Job,
    decoder: Decoder,
    eos_token_ids: AbstractSet[int],
    *,
    history: str,
    num_sent_tokens: int = 0,
) -> list[Event]:
    """Events of the session's last turn, without log-probabilities.

    Args:
        job: the turn as it was asked for.
        history: how its state came back, in words.
        num_sent_tokens: its first so many generated tokens are left out, and progress with them: the client has them.
    """
    known_tokens, answer = manifest.turns[-1].generated_start, last_answer(manifest)
    events: list[Event] = []
    if not num_sent_tokens:
        events.append(PrefillProgress(job.request_id, known_tokens, known_tokens, known_tokens))
    detokenizer = IncrementalDetokenizer(decoder, job.sampling.stop)
    ends = False
    for at, token_id in enumerate(answer):
        ends = token_id in eos_token_ids and not job.sampling.ignore_eos
        text = "" if ends else detokenizer.push(token_id)
        if at >= num_sent_tokens:
            events.append(TokenOutput(job.request_id, token_id, text, None))
    by_length = len(answer) == job.sampling.max_tokens and not (ends or detokenizer.stopped)
    done = Done(
        reason=FinishReason.LENGTH if by_length else FinishReason.STOP,
        text=detokenizer.finish(),
        num_generated_tokens=len(answer),
        num_restored_tokens=known_tokens,
        queue_ms=0.0,
        prefill_ms=0.0,
        restore_ms=0.0,
        save_ms=0.0,
        resident_bytes=0,
        peak_bytes=0,
        full_attention_bytes=0,
        session=SessionOutcome(manifest.version, True, "", history, 0),
    )
    return [*events, done]
