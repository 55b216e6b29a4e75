"""Which fields of OpenAI's requests mean what here. The rule, for every field that is given and not null:

known      it is obeyed, or its value is refused
NEUTRAL    OpenAI's, and not to be had here: accepted only with the value that asks for nothing
IGNORED    OpenAI's, and without any effect on an answer: accepted, and ignored
any other  refused: it might have mattered
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from swaa_runtime.errors import InvalidRequest
from swaa_runtime.request import SamplingParams

IGNORED = frozenset(
    {
        "user",
        "store",
        "metadata",
        "parallel_tool_calls",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
    }
)


class ModelNotFound(InvalidRequest):
    """A request names a model that is not served here."""


@dataclass(frozen=True, slots=True)
class Neutral:
    """Values that ask for nothing, and what to say of others."""

    values: tuple[Any, ...]
    bound: str


NEUTRAL: Mapping[str, Neutral] = {
    "n": Neutral((1,), "one answer a request; send as many requests"),
    "best_of": Neutral((1,), "one answer a request; send as many requests"),
    "echo": Neutral((False,), "the prompt is not echoed"),
    "suffix": Neutral(("",), "text is not inserted, only continued"),
    "logit_bias": Neutral(({},), "logits are not biased"),
    "presence_penalty": Neutral((0,), "there are no penalties"),
    "frequency_penalty": Neutral((0,), "there are no penalties"),
    "repetition_penalty": Neutral((1,), "there are no penalties"),
    "response_format": Neutral(({"type": "text"},), "answers are text; nothing holds them to a format"),
    "modalities": Neutral((["text"],), "answers are text"),
    "functions": Neutral(([],), "use tools"),
    "function_call": Neutral(("none",), "use tools"),
}

Count = Annotated[int, Field(le=2**31 - 1)]
"""What goes into 32 bits on the way; the lower bound is the field's own."""

Fields = TypeVar("Fields", bound="Strict")


class Strict(BaseModel):
    """A part of a request: types are as JSON has them, and nothing is unknown."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(Strict):
    """`include_obfuscation` pads OpenAI's events against eavesdroppers; it changes no answer, and is ignored."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TurnFields(Strict):
    """What requests for chats and for completions share. `top_k`, `min_p` and `ignore_eos` are as in vLLM."""

    model: str
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    max_tokens: Count | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: Count = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] = Field(default_factory=list)
    ignore_eos: bool = False

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        options = self.stream_options
        return options is not None and parse_part(options, StreamOptions, "stream_options").include_usage

    def sampling(self, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """Raises InvalidRequest for a value out of bounds."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options", self.stream_options, "only with stream: true")
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            ignore_eos=self.ignore_eos,
            logprobs=logprobs,
        )


def items_of(kind: type[Strict], most: int) -> dict[str, Any]:
    """What a description says of a list whose items are parsed one by one, so that refusals name their place."""
    return {"items": kind.model_json_schema(), "maxItems": most}


def parse(body: Mapping[str, Any], kind: type[Fields]) -> Fields:
    """A request's fields, by the rule above. Raises InvalidRequest naming the first that is wrong."""
    given = {name: value for name, value in body.items() if value is not None and name not in IGNORED}
    for name in given.keys() & (NEUTRAL.keys() - kind.model_fields.keys()):
        value, neutral = given.pop(name), NEUTRAL[name]
        if not any(_same(value, nothing) for nothing in neutral.values):
            raise InvalidRequest(name, value, f"not supported: {neutral.bound}")
    return parse_part(given, kind)


def parse_part(value: Any, kind: type[Fields], where: str = "") -> Fields:
    """A part of a request, null meaning absent. `where`: its place, for messages."""
    if not isinstance(value, dict):
        raise InvalidRequest(where or "body", value, "must be a JSON object")
    try:
        return kind.model_validate({name: each for name, each in value.items() if each is not None})
    except ValidationError as exc:
        problem = exc.errors(include_url=False, include_context=False)[0]
        name = str(problem["loc"][0])  # the rest of it names types
        field = f"{where}.{name}" if where else name
        if problem["type"] == "missing":
            raise InvalidRequest(field, None, "is required") from None
        if problem["type"] == "extra_forbidden":
            raise InvalidRequest(field, problem["input"], "unknown field; what may matter is not ignored") from None
        raise InvalidRequest(field, problem["input"], problem["msg"]) from None


def _same(value: Any, nothing: Any) -> bool:
    return isinstance(value, bool) == isinstance(nothing, bool) and bool(value == nothing)
