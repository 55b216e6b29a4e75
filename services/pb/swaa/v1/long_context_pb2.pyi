from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("text", "token_ids", "messages")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "ignore_eos", "logprobs")
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    ignore_eos: bool
    logprobs: int
    def __init__(self, max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., ignore_eos: _Optional[bool] = ..., logprobs: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("prompt", "sampling")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    sampling: Sampling
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("token_ids",)
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GenerateUploadRequest(_message.Message):
    __slots__ = ("request", "text", "token_ids", "message")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    request: GenerateRequest
    text: bytes
    token_ids: TokenIds
    message: ChatMessage
    def __init__(self, request: _Optional[_Union[GenerateRequest, _Mapping]] = ..., text: _Optional[bytes] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., message: _Optional[_Union[ChatMessage, _Mapping]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("accepted", "prefill", "token", "finish")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    accepted: Accepted
    prefill: PrefillProgress
    token: Token
    finish: Finish
    def __init__(self, accepted: _Optional[_Union[Accepted, _Mapping]] = ..., prefill: _Optional[_Union[PrefillProgress, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ...) -> None: ...

class Recipe(_message.Message):
    __slots__ = ("name", "description", "window", "sink_tokens", "full_layers", "lookback_layers", "full_decode", "full_tail", "thinking", "adapter")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SINK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FULL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    LOOKBACK_LAYERS_FIELD_NUMBER: _ClassVar[int]
    FULL_DECODE_FIELD_NUMBER: _ClassVar[int]
    FULL_TAIL_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    window: int
    sink_tokens: int
    full_layers: _containers.RepeatedScalarFieldContainer[int]
    lookback_layers: _containers.RepeatedScalarFieldContainer[int]
    full_decode: bool
    full_tail: int
    thinking: bool
    adapter: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., window: _Optional[int] = ..., sink_tokens: _Optional[int] = ..., full_layers: _Optional[_Iterable[int]] = ..., lookback_layers: _Optional[_Iterable[int]] = ..., full_decode: _Optional[bool] = ..., full_tail: _Optional[int] = ..., thinking: _Optional[bool] = ..., adapter: _Optional[str] = ...) -> None: ...

class Objective(_message.Message):
    __slots__ = ("sla_class", "ttft_ms", "tpot_ms", "min_quality", "priority", "strict")
    SLA_CLASS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_QUALITY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    STRICT_FIELD_NUMBER: _ClassVar[int]
    sla_class: str
    ttft_ms: float
    tpot_ms: float
    min_quality: float
    priority: int
    strict: bool
    def __init__(self, sla_class: _Optional[str] = ..., ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., min_quality: _Optional[float] = ..., priority: _Optional[int] = ..., strict: _Optional[bool] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("ttft_ms", "tpot_ms", "quality", "kv_bytes", "computed_tokens", "restore", "wait_ms", "work_ms", "harmed_turns")
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    WORK_MS_FIELD_NUMBER: _ClassVar[int]
    HARMED_TURNS_FIELD_NUMBER: _ClassVar[int]
    ttft_ms: float
    tpot_ms: float
    quality: float
    kv_bytes: int
    computed_tokens: int
    restore: RestorePlan
    wait_ms: float
    work_ms: float
    harmed_turns: int
    def __init__(self, ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., quality: _Optional[float] = ..., kv_bytes: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., restore: _Optional[_Union[RestorePlan, _Mapping]] = ..., wait_ms: _Optional[float] = ..., work_ms: _Optional[float] = ..., harmed_turns: _Optional[int] = ...) -> None: ...

class RestorePlan(_message.Message):
    __slots__ = ("kind", "source", "restored_tokens", "reason")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    RESTORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    source: str
    restored_tokens: int
    reason: str
    def __init__(self, kind: _Optional[str] = ..., source: _Optional[str] = ..., restored_tokens: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("request_id", "session_id", "recipe", "objective", "prediction", "predicted_to_meet", "reason", "prompt_tokens", "history_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TO_MEET_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    session_id: str
    recipe: Recipe
    objective: Objective
    prediction: Prediction
    predicted_to_meet: bool
    reason: str
    prompt_tokens: int
    history_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., session_id: _Optional[str] = ..., recipe: _Optional[_Union[Recipe, _Mapping]] = ..., objective: _Optional[_Union[Objective, _Mapping]] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., predicted_to_meet: _Optional[bool] = ..., reason: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., history_tokens: _Optional[int] = ...) -> None: ...

class PrefillProgress(_message.Message):
    __slots__ = ("done_tokens", "total_tokens", "restored_tokens")
    DONE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESTORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    done_tokens: int
    total_tokens: int
    restored_tokens: int
    def __init__(self, done_tokens: _Optional[int] = ..., total_tokens: _Optional[int] = ..., restored_tokens: _Optional[int] = ...) -> None: ...

class Logprob(_message.Message):
    __slots__ = ("logprob", "top_token_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("token_id", "text", "logprob")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    text: str
    logprob: Logprob
    def __init__(self, token_id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[_Union[Logprob, _Mapping]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "history_tokens", "restored_tokens", "computed_tokens", "generated_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RESTORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    history_tokens: int
    restored_tokens: int
    computed_tokens: int
    generated_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., history_tokens: _Optional[int] = ..., restored_tokens: _Optional[int] = ..., computed_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("queue_ms", "restore_ms", "ttft_ms", "tpot_ms", "save_ms", "total_ms")
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    RESTORE_MS_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    SAVE_MS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MS_FIELD_NUMBER: _ClassVar[int]
    queue_ms: float
    restore_ms: float
    ttft_ms: float
    tpot_ms: float
    save_ms: float
    total_ms: float
    def __init__(self, queue_ms: _Optional[float] = ..., restore_ms: _Optional[float] = ..., ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., save_ms: _Optional[float] = ..., total_ms: _Optional[float] = ...) -> None: ...

class KvMemory(_message.Message):
    __slots__ = ("resident_bytes", "peak_bytes", "full_attention_bytes")
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FULL_ATTENTION_BYTES_FIELD_NUMBER: _ClassVar[int]
    resident_bytes: int
    peak_bytes: int
    full_attention_bytes: int
    def __init__(self, resident_bytes: _Optional[int] = ..., peak_bytes: _Optional[int] = ..., full_attention_bytes: _Optional[int] = ...) -> None: ...

class SessionResult(_message.Message):
    __slots__ = ("session_id", "version", "saved", "error", "history", "saved_bytes")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SAVED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    version: int
    saved: bool
    error: str
    history: str
    saved_bytes: int
    def __init__(self, session_id: _Optional[str] = ..., version: _Optional[int] = ..., saved: _Optional[bool] = ..., error: _Optional[str] = ..., history: _Optional[str] = ..., saved_bytes: _Optional[int] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("reason", "text", "usage", "timings", "kv_memory", "sla_met", "sla_misses", "session")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    KV_MEMORY_FIELD_NUMBER: _ClassVar[int]
    SLA_MET_FIELD_NUMBER: _ClassVar[int]
    SLA_MISSES_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    text: str
    usage: Usage
    timings: Timings
    kv_memory: KvMemory
    sla_met: bool
    sla_misses: _containers.RepeatedScalarFieldContainer[str]
    session: SessionResult
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., text: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., kv_memory: _Optional[_Union[KvMemory, _Mapping]] = ..., sla_met: _Optional[bool] = ..., sla_misses: _Optional[_Iterable[str]] = ..., session: _Optional[_Union[SessionResult, _Mapping]] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("prompt", "prompt_tokens", "max_tokens")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    prompt_tokens: int
    max_tokens: int
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., prompt_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("recipe", "prediction", "meets", "misses")
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    MEETS_FIELD_NUMBER: _ClassVar[int]
    MISSES_FIELD_NUMBER: _ClassVar[int]
    recipe: Recipe
    prediction: Prediction
    meets: bool
    misses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, recipe: _Optional[_Union[Recipe, _Mapping]] = ..., prediction: _Optional[_Union[Prediction, _Mapping]] = ..., meets: _Optional[bool] = ..., misses: _Optional[_Iterable[str]] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("chosen", "reason", "objective", "candidates", "prompt_tokens", "history_tokens")
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    chosen: Candidate
    reason: str
    objective: Objective
    candidates: _containers.RepeatedCompositeFieldContainer[Candidate]
    prompt_tokens: int
    history_tokens: int
    def __init__(self, chosen: _Optional[_Union[Candidate, _Mapping]] = ..., reason: _Optional[str] = ..., objective: _Optional[_Union[Objective, _Mapping]] = ..., candidates: _Optional[_Iterable[_Union[Candidate, _Mapping]]] = ..., prompt_tokens: _Optional[int] = ..., history_tokens: _Optional[int] = ...) -> None: ...

class ListRecipesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SlaClass(_message.Message):
    __slots__ = ("name", "description", "ttft_ms", "tpot_ms", "min_quality", "priority")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    MIN_QUALITY_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    ttft_ms: float
    tpot_ms: float
    min_quality: float
    priority: int
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., ttft_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., min_quality: _Optional[float] = ..., priority: _Optional[int] = ...) -> None: ...

class QualityPoint(_message.Message):
    __slots__ = ("prompt_tokens", "recall")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    RECALL_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    recall: float
    def __init__(self, prompt_tokens: _Optional[int] = ..., recall: _Optional[float] = ...) -> None: ...

class MeasuredRecipe(_message.Message):
    __slots__ = ("recipe", "quality")
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    recipe: Recipe
    quality: _containers.RepeatedCompositeFieldContainer[QualityPoint]
    def __init__(self, recipe: _Optional[_Union[Recipe, _Mapping]] = ..., quality: _Optional[_Iterable[_Union[QualityPoint, _Mapping]]] = ...) -> None: ...

class ListRecipesResponse(_message.Message):
    __slots__ = ("recipes", "sla_classes", "model", "num_layers", "max_model_tokens", "attention_backend", "quality_source", "cost_source", "device", "catalog_source", "catalog_error", "catalog_loaded_at_s")
    RECIPES_FIELD_NUMBER: _ClassVar[int]
    SLA_CLASSES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_BACKEND_FIELD_NUMBER: _ClassVar[int]
    QUALITY_SOURCE_FIELD_NUMBER: _ClassVar[int]
    COST_SOURCE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CATALOG_SOURCE_FIELD_NUMBER: _ClassVar[int]
    CATALOG_ERROR_FIELD_NUMBER: _ClassVar[int]
    CATALOG_LOADED_AT_S_FIELD_NUMBER: _ClassVar[int]
    recipes: _containers.RepeatedCompositeFieldContainer[MeasuredRecipe]
    sla_classes: _containers.RepeatedCompositeFieldContainer[SlaClass]
    model: str
    num_layers: int
    max_model_tokens: int
    attention_backend: str
    quality_source: str
    cost_source: str
    device: str
    catalog_source: str
    catalog_error: str
    catalog_loaded_at_s: float
    def __init__(self, recipes: _Optional[_Iterable[_Union[MeasuredRecipe, _Mapping]]] = ..., sla_classes: _Optional[_Iterable[_Union[SlaClass, _Mapping]]] = ..., model: _Optional[str] = ..., num_layers: _Optional[int] = ..., max_model_tokens: _Optional[int] = ..., attention_backend: _Optional[str] = ..., quality_source: _Optional[str] = ..., cost_source: _Optional[str] = ..., device: _Optional[str] = ..., catalog_source: _Optional[str] = ..., catalog_error: _Optional[str] = ..., catalog_loaded_at_s: _Optional[float] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "version", "num_tokens", "num_turns", "recipe_name", "kv_bytes", "created_at_s", "updated_at_s", "expires_at_s")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TURNS_FIELD_NUMBER: _ClassVar[int]
    RECIPE_NAME_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_S_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    version: int
    num_tokens: int
    num_turns: int
    recipe_name: str
    kv_bytes: int
    created_at_s: float
    updated_at_s: float
    expires_at_s: float
    def __init__(self, session_id: _Optional[str] = ..., version: _Optional[int] = ..., num_tokens: _Optional[int] = ..., num_turns: _Optional[int] = ..., recipe_name: _Optional[str] = ..., kv_bytes: _Optional[int] = ..., created_at_s: _Optional[float] = ..., updated_at_s: _Optional[float] = ..., expires_at_s: _Optional[float] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[Session]
    def __init__(self, sessions: _Optional[_Iterable[_Union[Session, _Mapping]]] = ...) -> None: ...

class ForkSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class DeleteSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class DeleteSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExportSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class ExportSessionResponse(_message.Message):
    __slots__ = ("session", "chunk")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    session: Session
    chunk: bytes
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ImportSessionRequest(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...
