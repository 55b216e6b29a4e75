"""Jobs, events and facts as messages of swaa.v1.Replica, and back. With `wire_backlog` all that knows both."""

from __future__ import annotations

import json
import time
from typing import Any, cast, get_args

from services.cost import CostProfile
from services.pb.swaa.v1 import replica_pb2 as pb
from services.replica.facts import ModelFacts
from services.replica.job import Done, Event, Job, SessionOutcome, SessionUse
from services.restore_plan import RestoreKind, RestorePlan, StateSource
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.recipe import Recipe
from swaa_runtime.request import FinishReason, SamplingParams, TokenLogprob
from swaa_runtime.shape import ModelShape

MAX_RUN_BYTES = 64 << 20
"""Of one message between gateway and replica: prompts come as token ids, so this is ten million of them."""

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""What a tokenizer may consist of. A gateway writes files of these names, and of no others."""

REPLICA_NAME = "swaa-replica"
"""Under TLS every replica's certificate is for this name, wherever it runs; gateways look for it."""

RUN_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_RUN_BYTES),
    ("grpc.max_send_message_length", MAX_RUN_BYTES),
    # A machine that lost its power says no goodbye: an unanswered ping does.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 2_000),
    ("grpc.http2.max_ping_strikes", 0),
)


# Jobs. The deadline goes as the call's own; the session's state is read from the store at the other end.


def run_request(job: Job) -> pb.RunRequest:
    """A job as a message."""
    request = pb.RunRequest(
        request_id=job.request_id,
        prompt_token_ids=job.prompt_token_ids,
        sent_token_ids=job.sent_token_ids,
        recipe_name=job.recipe_name,
        recipe_json=json.dumps(job.recipe.to_mapping()),
        sampling=_sampling_message(job.sampling),
        priority=job.priority,
        tpot_ms=job.tpot_ms,
    )
    if job.ttft_due_s is not None:
        request.ttft_due_in_ms = (job.ttft_due_s - time.monotonic()) * 1e3
    if job.session is not None:
        request.tenant, request.session_id = job.session.tenant, job.session.session_id
        request.version, request.idempotency_key = job.session.version, job.session.idempotency_key
        if job.session.quota_bytes is not None:
            request.quota_bytes = job.session.quota_bytes
    if job.restore is not None:
        request.restore.CopyFrom(_restore_message(job.restore))
    return request


def job_from(request: pb.RunRequest, deadline_s: float | None) -> Job:
    """The job of a message. Raises InvalidRequest, InvalidRecipe."""
    session = ttft_due_s = None
    if request.HasField("ttft_due_in_ms"):
        ttft_due_s = time.monotonic() + request.ttft_due_in_ms / 1e3
    if request.session_id:
        quota_bytes = request.quota_bytes if request.HasField("quota_bytes") else None
        session = SessionUse(request.tenant, request.session_id, request.version, request.idempotency_key, quota_bytes)
    return Job(
        request_id=request.request_id,
        prompt_token_ids=tuple(request.prompt_token_ids[:]),
        recipe_name=request.recipe_name,
        recipe=Recipe.from_mapping(json.loads(request.recipe_json)),
        sampling=_sampling_from(request.sampling),
        priority=request.priority,
        deadline_s=deadline_s,
        ttft_due_s=ttft_due_s,
        tpot_ms=request.tpot_ms if request.HasField("tpot_ms") else None,
        session=session,
        restore=_restore_from(request.restore) if request.HasField("restore") else None,
        sent_token_ids=tuple(request.sent_token_ids[:]),
    )


def _sampling_message(params: SamplingParams) -> pb.RunSampling:
    return pb.RunSampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        stop=params.stop,
        ignore_eos=params.ignore_eos,
        logprobs=params.logprobs,
    )


def _sampling_from(message: pb.RunSampling) -> SamplingParams:
    return SamplingParams(
        max_tokens=message.max_tokens,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p,
        min_p=message.min_p,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
    )


def _restore_message(plan: RestorePlan) -> pb.RunRestore:
    return pb.RunRestore(
        kind=plan.kind,
        source=plan.source or "",
        prefix_id=plan.prefix_id,
        compute_stop=plan.compute_stop,
        num_tokens=plan.num_tokens,
        predicted_ms=plan.predicted_ms,
        reason=plan.reason,
        work_tokens=plan.work_tokens,
        work_ms=plan.work_ms,
    )


def _restore_from(message: pb.RunRestore) -> RestorePlan:
    if message.kind not in get_args(RestoreKind):
        raise InvalidRequest("restore.kind", message.kind, f"must be one of {', '.join(get_args(RestoreKind))}")
    return RestorePlan(
        kind=cast(RestoreKind, message.kind),
        source=_source_from(message.source),
        prefix_id=message.prefix_id,
        compute_stop=message.compute_stop,
        num_tokens=message.num_tokens,
        predicted_ms=message.predicted_ms,
        reason=message.reason,
        work_tokens=message.work_tokens,
        work_ms=message.work_ms,
    )


def _source_from(name: str) -> StateSource | None:
    if name and name not in get_args(StateSource):
        raise InvalidRequest("restore.source", name, f"must be empty or one of {', '.join(get_args(StateSource))}")
    return cast(StateSource, name) if name else None


# Events.


def run_event(event: Event) -> pb.RunEvent:
    """An event as a message."""
    if isinstance(event, PrefillProgress):
        prefill = pb.RunPrefill(
            num_computed_tokens=event.num_computed_tokens,
            prompt_stop=event.prompt_stop,
            num_restored_tokens=event.num_restored_tokens,
        )
        return pb.RunEvent(prefill=prefill)
    if isinstance(event, TokenOutput):
        token = pb.RunToken(token_id=event.token_id, text=event.text)
        if event.logprob is not None:
            token.logprob = event.logprob.logprob
            token.top_token_ids.extend(event.logprob.top_token_ids)
            token.top_logprobs.extend(event.logprob.top_logprobs)
        return pb.RunEvent(token=token)
    return pb.RunEvent(done=_done_message(event))


def event_from(message: pb.RunEvent, request_id: str) -> Event:
    """The event of a message. Raises InvalidRequest for one that has none."""
    match message.WhichOneof("event"):
        case "prefill":
            prefill = message.prefill
            return PrefillProgress(
                request_id, prefill.num_computed_tokens, prefill.prompt_stop, prefill.num_restored_tokens
            )
        case "token":
            token, logprob = message.token, None
            if token.HasField("logprob"):
                logprob = TokenLogprob(token.logprob, tuple(token.top_token_ids), tuple(token.top_logprobs))
            return TokenOutput(request_id, token.token_id, token.text, logprob)
        case "done":
            return _done_from(message.done)
    raise InvalidRequest("event", "", "must be prefill, token or done")


def _done_message(done: Done) -> pb.RunDone:
    message = pb.RunDone(
        reason=done.reason.value,
        text=done.text,
        num_generated_tokens=done.num_generated_tokens,
        num_restored_tokens=done.num_restored_tokens,
        queue_ms=done.queue_ms,
        prefill_ms=done.prefill_ms,
        restore_ms=done.restore_ms,
        save_ms=done.save_ms,
        resident_bytes=done.resident_bytes,
        peak_bytes=done.peak_bytes,
        full_attention_bytes=done.full_attention_bytes,
    )
    if done.session is not None:
        outcome = done.session
        message.session.CopyFrom(
            pb.RunSession(
                version=outcome.version,
                saved=outcome.saved,
                error=outcome.error,
                history=outcome.history,
                saved_bytes=outcome.saved_bytes,
            )
        )
    return message


def _done_from(message: pb.RunDone) -> Done:
    outcome = None
    if message.HasField("session"):
        saved = message.session
        outcome = SessionOutcome(saved.version, saved.saved, saved.error, saved.history, saved.saved_bytes)
    return Done(
        reason=FinishReason(message.reason),
        text=message.text,
        num_generated_tokens=message.num_generated_tokens,
        num_restored_tokens=message.num_restored_tokens,
        queue_ms=message.queue_ms,
        prefill_ms=message.prefill_ms,
        restore_ms=message.restore_ms,
        save_ms=message.save_ms,
        resident_bytes=message.resident_bytes,
        peak_bytes=message.peak_bytes,
        full_attention_bytes=message.full_attention_bytes,
        session=outcome,
    )


# Facts.


def facts_message(facts: ModelFacts) -> pb.ModelFacts:
    """Facts as a message."""
    shape = facts.shape
    return pb.ModelFacts(
        fingerprint=facts.fingerprint,
        device=facts.device,
        attention_backend=facts.attention_backend,
        num_layers=shape.num_layers,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_model_tokens=shape.max_model_tokens,
        dtype=shape.dtype,
        max_session_tokens=facts.max_session_tokens,
        cost_profile_json=json.dumps(facts.cost.to_mapping()),
        eos_token_ids=sorted(facts.eos_token_ids),
        adapter_ids=facts.adapter_ids,
    )


def facts_from(message: pb.ModelFacts) -> ModelFacts:
    """The facts of a message. Raises InvalidRequest for a cost profile of another version."""
    profile: Any = json.loads(message.cost_profile_json)
    return ModelFacts(
        fingerprint=message.fingerprint,
        device=message.device,
        attention_backend=message.attention_backend,
        shape=ModelShape(
            num_layers=message.num_layers,
            num_heads=message.num_heads,
            num_kv_heads=message.num_kv_heads,
            head_dim=message.head_dim,
            vocab_size=message.vocab_size,
            max_model_tokens=message.max_model_tokens,
            dtype=message.dtype,
        ),
        max_session_tokens=message.max_session_tokens,
        eos_token_ids=frozenset(message.eos_token_ids),
        cost=CostProfile.from_mapping(profile),
        adapter_ids=dict(message.adapter_ids),
    )
