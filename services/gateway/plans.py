"""What is served, and which recipe a prompt would get, as every wire answers it: message in, message out."""

from __future__ import annotations

from services.gateway import messages
from services.gateway.answers import Answers, Headers
from services.gateway.catalog_source import Catalogs
from services.gateway.identity import Identity
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.replica.facts import ModelFacts
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.request import SamplingParams


async def plan_response(
    answers: Answers, identity: Identity, request: pb.PlanRequest, headers: Headers
) -> pb.PlanResponse:
    """The plan for a prompt, or for a prompt's length.

    Raises:
        InvalidRequest: for what is out of bounds; SlaUnattainable: strict, and nothing meets it.
        Whatever else `Answers.plan` raises.
    """
    max_tokens = request.max_tokens if request.HasField("max_tokens") else messages.DEFAULT_MAX_TOKENS
    params = SamplingParams(max_tokens=max_tokens)
    if request.prompt_tokens and request.HasField("prompt"):
        raise InvalidRequest("prompt_tokens", request.prompt_tokens, "give either prompt or prompt_tokens")
    if request.prompt_tokens:
        objective, work, plan = await answers.plan_length(identity, request.prompt_tokens, params.max_tokens, headers)
        return messages.plan_message(plan, objective, work)
    prompt = messages.prompt_input(request.prompt)
    prompt.check()
    planned = await answers.plan(identity, prompt, params.max_tokens, headers)
    return messages.plan_message(planned.plan, planned.request.objective, planned.work)


def recipes_response(
    model_name: str, identity: Identity, facts: ModelFacts, catalogs: Catalogs
) -> pb.ListRecipesResponse:
    """The model, what it runs on, its recipes, and the SLA classes that are open to who asks."""
    response = pb.ListRecipesResponse(
        model=model_name,
        num_layers=facts.shape.num_layers,
        max_model_tokens=facts.max_session_tokens,
        attention_backend=facts.attention_backend,
        device=facts.device,
        cost_source=facts.cost.source,
        catalog_source=str(catalogs.path),
        catalog_error=catalogs.error,
        catalog_loaded_at_s=catalogs.loaded_at_s,
    )
    messages.catalog_message(catalogs.current, catalogs.current.tenant(identity.tenant), response)
    return response
