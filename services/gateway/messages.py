"""Between the wire's messages and the gateway's own types, both ways. No decisions are taken here."""

from __future__ import annotations

from services.gateway.answers import Accepted, Answered, Timings
from services.gateway.catalog import Catalog, NamedRecipe
from services.gateway.limits import MAX_MESSAGES
from services.gateway.planner import Candidate, Plan, Prediction, Work
from services.gateway.prompt import ChatMessage, PromptInput
from services.gateway.sla import Objective, TenantPolicy
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.replica.job import Done
from services.sessions.store import Manifest
from swaa_runtime.outputs import PrefillProgress, TokenOutput
from swaa_runtime.recipe import Recipe, select_layers
from swaa_runtime.request import FinishReason, SamplingParams

DEFAULT_MAX_TOKENS = 256

FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def prompt_input(message: pb.Prompt) -> PromptInput:
    """Unchecked: call `check` on the result. Of messages, one more than there may be is enough to refuse them."""
    messages = tuple(ChatMessage(item.role, item.content) for item in message.messages[: MAX_MESSAGES + 1])
    token_ids = tuple(message.token_ids[:])  # a slice is copied twice as fast as ids are counted off one by one
    return PromptInput(message.text, token_ids, messages)


def sampling_params(message: pb.Sampling) -> SamplingParams:
    """Raises InvalidRequest for a value out of bounds."""
    return SamplingParams(
        max_tokens=message.max_tokens if message.HasField("max_tokens") else DEFAULT_MAX_TOKENS,
        temperature=message.temperature,
        top_k=message.top_k,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        min_p=message.min_p,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        ignore_eos=message.ignore_eos,
        logprobs=message.logprobs if message.HasField("logprobs") else None,
    )


def recipe_message(named: NamedRecipe) -> pb.Recipe:
    """A recipe of the catalogue, its layers as indices in this model."""
    recipe, num_layers = named.recipe, len(named.rules)
    return pb.Recipe(
        name=named.name,
        description=named.description,
        window=recipe.window or 0,
        sink_tokens=recipe.sink_tokens,
        full_layers=sorted(select_layers("full_layers", recipe.full_layers, num_layers)),
        lookback_layers=_lookback(recipe, num_layers),
        full_decode=recipe.full_decode,
        full_tail=recipe.full_tail,
        thinking=recipe.thinking,
        adapter=recipe.adapter or "",
    )


def _lookback(recipe: Recipe, num_layers: int) -> list[int]:
    if recipe.lookback_layers is None:
        return list(range(num_layers))
    return sorted(select_layers("lookback_layers", recipe.lookback_layers, num_layers))


def objective_message(objective: Objective) -> pb.Objective:
    """What the request asks for."""
    return pb.Objective(
        sla_class=objective.sla_class,
        ttft_ms=objective.ttft_ms,
        tpot_ms=objective.tpot_ms,
        min_quality=objective.min_quality,
        priority=objective.priority,
        strict=objective.strict,
    )


def prediction_message(prediction: Prediction) -> pb.Prediction:
    """What a recipe is expected to give."""
    return pb.Prediction(
        ttft_ms=prediction.ttft_ms,
        tpot_ms=prediction.tpot_ms,
        quality=prediction.quality,
        kv_bytes=prediction.kv_bytes,
        computed_tokens=prediction.computed_tokens,
        wait_ms=prediction.wait_ms,
        work_ms=prediction.work_ms,
        harmed_turns=prediction.num_harmed,
        restore=pb.RestorePlan(
            kind=prediction.restore.kind,
            source=prediction.restore.source or "",
            restored_tokens=prediction.restore.num_restored_tokens,
            reason=prediction.restore.reason,
        ),
    )


def candidate_message(candidate: Candidate) -> pb.Candidate:
    """One recipe that was weighed."""
    return pb.Candidate(
        recipe=recipe_message(candidate.named),
        prediction=prediction_message(candidate.prediction),
        meets=candidate.meets,
        misses=candidate.misses,
    )


def plan_message(plan: Plan, objective: Objective, work: Work) -> pb.PlanResponse:
    """The whole plan."""
    return pb.PlanResponse(
        chosen=candidate_message(plan.chosen),
        reason=plan.reason,
        objective=objective_message(objective),
        candidates=[candidate_message(candidate) for candidate in plan.candidates],
        prompt_tokens=work.prompt_tokens,
        history_tokens=work.history_tokens,
    )


def accepted_message(event: Accepted) -> pb.GenerateResponse:
    """The first message of a stream."""
    job, planned = event.job, event.planned
    plan, work, objective = planned.plan, planned.work, planned.request.objective
    accepted = pb.Accepted(
        request_id=job.request_id,
        session_id=job.session.session_id if job.session else "",
        recipe=recipe_message(plan.chosen.named),
        objective=objective_message(objective),
        prediction=prediction_message(plan.chosen.prediction),
        predicted_to_meet=plan.chosen.meets,
        reason=plan.reason,
        prompt_tokens=work.prompt_tokens,
        history_tokens=work.history_tokens,
    )
    return pb.GenerateResponse(accepted=accepted)


def prefill_message(event: PrefillProgress) -> pb.GenerateResponse:
    """How far the prompt is."""
    return pb.GenerateResponse(
        prefill=pb.PrefillProgress(
            done_tokens=event.num_computed_tokens,
            total_tokens=event.prompt_stop,
            restored_tokens=event.num_restored_tokens,
        )
    )


def token_message(event: TokenOutput) -> pb.GenerateResponse:
    """One generated token."""
    token = pb.Token(token_id=event.token_id, text=event.text)
    if event.logprob is not None:
        token.logprob.logprob = event.logprob.logprob
        token.logprob.top_token_ids.extend(event.logprob.top_token_ids)
        token.logprob.top_logprobs.extend(event.logprob.top_logprobs)
    return pb.GenerateResponse(token=token)


def usage_message(done: Done, work: Work) -> pb.Usage:
    """Tokens of a finished turn."""
    return pb.Usage(
        prompt_tokens=work.prompt_tokens,
        history_tokens=work.history_tokens,
        restored_tokens=done.num_restored_tokens,
        computed_tokens=work.history_tokens + work.prompt_tokens - done.num_restored_tokens,
        generated_tokens=done.num_generated_tokens,
    )


def timings_message(timings: Timings) -> pb.Timings:
    """When things happened."""
    return pb.Timings(
        queue_ms=timings.queue_ms,
        restore_ms=timings.restore_ms,
        ttft_ms=timings.ttft_ms,
        tpot_ms=timings.tpot_ms,
        save_ms=timings.save_ms,
        total_ms=timings.total_ms,
    )


def finish_message(event: Answered) -> pb.GenerateResponse:
    """The last message of a stream that ended well."""
    done, session = event.done, event.job.session
    finish = pb.Finish(
        reason=FINISH_REASONS[done.reason],
        text=done.text,
        usage=usage_message(done, event.planned.work),
        timings=timings_message(event.timings),
        kv_memory=pb.KvMemory(
            resident_bytes=done.resident_bytes,
            peak_bytes=done.peak_bytes,
            full_attention_bytes=done.full_attention_bytes,
        ),
        sla_met=not event.misses,
        sla_misses=event.misses,
    )
    if session is not None and done.session is not None:
        finish.session.session_id = session.session_id
        finish.session.version = done.session.version
        finish.session.saved = done.session.saved
        finish.session.error = done.session.error
        finish.session.history = done.session.history
        finish.session.saved_bytes = done.session.saved_bytes
    return pb.GenerateResponse(finish=finish)


def session_message(manifest: Manifest) -> pb.Session:
    """What a client may know of a session."""
    return pb.Session(
        session_id=manifest.session_id,
        version=manifest.version,
        num_tokens=len(manifest.token_ids),
        num_turns=len(manifest.turns),
        recipe_name=manifest.recipe_name,
        kv_bytes=sum(ref.num_bytes for ref in manifest.segments),
        created_at_s=manifest.created_at_s,
        updated_at_s=manifest.updated_at_s,
        expires_at_s=manifest.expires_at_s,
    )


def catalog_message(catalog: Catalog, tenant: TenantPolicy, response: pb.ListRecipesResponse) -> None:
    """Add the recipes with their measured quality, and the SLA classes that the tenant may ask for."""
    for named in catalog.recipes.values():
        recall = catalog.quality.recall[named.name]
        points = [
            pb.QualityPoint(prompt_tokens=length, recall=value)
            for length, value in zip(catalog.quality.lengths_tokens, recall, strict=True)
        ]
        response.recipes.append(pb.MeasuredRecipe(recipe=recipe_message(named), quality=points))
    for sla in (sla for name, sla in catalog.sla_classes.items() if tenant.allows(name)):
        response.sla_classes.append(
            pb.SlaClass(
                name=sla.name,
                description=sla.description,
                ttft_ms=sla.ttft_ms,
                tpot_ms=sla.tpot_ms,
                min_quality=sla.min_quality,
                priority=sla.priority,
            )
        )
    response.quality_source = catalog.quality.source
