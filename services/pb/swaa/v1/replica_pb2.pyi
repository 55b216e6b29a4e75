from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenizerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TokenizerFile(_message.Message):
    __slots__ = ("name", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    data: bytes
    def __init__(self, name: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class LeaseRequest(_message.Message):
    __slots__ = ("tenant", "session_id", "version")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    session_id: str
    version: int
    def __init__(self, tenant: _Optional[str] = ..., session_id: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class LeaseGrant(_message.Message):
    __slots__ = ("replica_id", "address", "queued_tokens", "is_hot", "model", "backlog")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IS_HOT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BACKLOG_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    address: str
    queued_tokens: int
    is_hot: bool
    model: ModelFacts
    backlog: Backlog
    def __init__(self, replica_id: _Optional[str] = ..., address: _Optional[str] = ..., queued_tokens: _Optional[int] = ..., is_hot: _Optional[bool] = ..., model: _Optional[_Union[ModelFacts, _Mapping]] = ..., backlog: _Optional[_Union[Backlog, _Mapping]] = ...) -> None: ...

class Backlog(_message.Message):
    __slots__ = ("pending", "decoding", "decode_step_ms", "age_ms", "arrivals_per_s", "interrupt_tokens", "num_layers")
    PENDING_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    DECODE_STEP_MS_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_PER_S_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    pending: _containers.RepeatedCompositeFieldContainer[PendingTurn]
    decoding: _containers.RepeatedCompositeFieldContainer[DecodingTurn]
    decode_step_ms: float
    age_ms: float
    arrivals_per_s: float
    interrupt_tokens: int
    num_layers: int
    def __init__(self, pending: _Optional[_Iterable[_Union[PendingTurn, _Mapping]]] = ..., decoding: _Optional[_Iterable[_Union[DecodingTurn, _Mapping]]] = ..., decode_step_ms: _Optional[float] = ..., age_ms: _Optional[float] = ..., arrivals_per_s: _Optional[float] = ..., interrupt_tokens: _Optional[int] = ..., num_layers: _Optional[int] = ...) -> None: ...

class PendingTurn(_message.Message):
    __slots__ = ("request_id", "work_ms", "due_in_ms", "priority", "ready_in_ms", "num_tokens", "tpot_ms", "answer_tokens", "answer_ms", "chunk_ms")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    WORK_MS_FIELD_NUMBER: _ClassVar[int]
    DUE_IN_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    READY_IN_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_MS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_MS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    work_ms: float
    due_in_ms: float
    priority: int
    ready_in_ms: float
    num_tokens: float
    tpot_ms: float
    answer_tokens: int
    answer_ms: float
    chunk_ms: float
    def __init__(self, request_id: _Optional[str] = ..., work_ms: _Optional[float] = ..., due_in_ms: _Optional[float] = ..., priority: _Optional[int] = ..., ready_in_ms: _Optional[float] = ..., num_tokens: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., answer_tokens: _Optional[int] = ..., answer_ms: _Optional[float] = ..., chunk_ms: _Optional[float] = ...) -> None: ...

class DecodingTurn(_message.Message):
    __slots__ = ("request_id", "tpot_ms", "priority", "left_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    LEFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tpot_ms: float
    priority: int
    left_tokens: float
    def __init__(self, request_id: _Optional[str] = ..., tpot_ms: _Optional[float] = ..., priority: _Optional[int] = ..., left_tokens: _Optional[float] = ...) -> None: ...

class ModelFacts(_message.Message):
    __slots__ = ("fingerprint", "device", "attention_backend", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size", "max_model_tokens", "dtype", "max_session_tokens", "cost_profile_json", "eos_token_ids", "adapter_ids")
    class AdapterIdsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_BACKEND_FIELD_NUMBER: _ClassVar[int]
    NUM_LAYERS_FIELD_NUMBER: _ClassVar[int]
    NUM_HEADS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIM_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_SESSION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_PROFILE_JSON_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_IDS_FIELD_NUMBER: _ClassVar[int]
    fingerprint: str
    device: str
    attention_backend: str
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_model_tokens: int
    dtype: str
    max_session_tokens: int
    cost_profile_json: str
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    adapter_ids: _containers.ScalarMap[str, str]
    def __init__(self, fingerprint: _Optional[str] = ..., device: _Optional[str] = ..., attention_backend: _Optional[str] = ..., num_layers: _Optional[int] = ..., num_heads: _Optional[int] = ..., num_kv_heads: _Optional[int] = ..., head_dim: _Optional[int] = ..., vocab_size: _Optional[int] = ..., max_model_tokens: _Optional[int] = ..., dtype: _Optional[str] = ..., max_session_tokens: _Optional[int] = ..., cost_profile_json: _Optional[str] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., adapter_ids: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("request_id", "prompt_token_ids", "sent_token_ids", "recipe_name", "recipe_json", "sampling", "priority", "tenant", "session_id", "version", "restore", "ttft_due_in_ms", "tpot_ms", "idempotency_key", "quota_bytes")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SENT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RECIPE_NAME_FIELD_NUMBER: _ClassVar[int]
    RECIPE_JSON_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    TTFT_DUE_IN_MS_FIELD_NUMBER: _ClassVar[int]
    TPOT_MS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sent_token_ids: _containers.RepeatedScalarFieldContainer[int]
    recipe_name: str
    recipe_json: str
    sampling: RunSampling
    priority: int
    tenant: str
    session_id: str
    version: int
    restore: RunRestore
    ttft_due_in_ms: float
    tpot_ms: float
    idempotency_key: str
    quota_bytes: int
    def __init__(self, request_id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., sent_token_ids: _Optional[_Iterable[int]] = ..., recipe_name: _Optional[str] = ..., recipe_json: _Optional[str] = ..., sampling: _Optional[_Union[RunSampling, _Mapping]] = ..., priority: _Optional[int] = ..., tenant: _Optional[str] = ..., session_id: _Optional[str] = ..., version: _Optional[int] = ..., restore: _Optional[_Union[RunRestore, _Mapping]] = ..., ttft_due_in_ms: _Optional[float] = ..., tpot_ms: _Optional[float] = ..., idempotency_key: _Optional[str] = ..., quota_bytes: _Optional[int] = ...) -> None: ...

class RunSampling(_message.Message):
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

class RunRestore(_message.Message):
    __slots__ = ("kind", "source", "prefix_id", "compute_stop", "num_tokens", "predicted_ms", "reason", "work_ms", "work_tokens")
    KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PREFIX_ID_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_STOP_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WORK_MS_FIELD_NUMBER: _ClassVar[int]
    WORK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    source: str
    prefix_id: str
    compute_stop: int
    num_tokens: int
    predicted_ms: float
    reason: str
    work_ms: float
    work_tokens: int
    def __init__(self, kind: _Optional[str] = ..., source: _Optional[str] = ..., prefix_id: _Optional[str] = ..., compute_stop: _Optional[int] = ..., num_tokens: _Optional[int] = ..., predicted_ms: _Optional[float] = ..., reason: _Optional[str] = ..., work_ms: _Optional[float] = ..., work_tokens: _Optional[int] = ...) -> None: ...

class RunEvent(_message.Message):
    __slots__ = ("prefill", "token", "done")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    prefill: RunPrefill
    token: RunToken
    done: RunDone
    def __init__(self, prefill: _Optional[_Union[RunPrefill, _Mapping]] = ..., token: _Optional[_Union[RunToken, _Mapping]] = ..., done: _Optional[_Union[RunDone, _Mapping]] = ...) -> None: ...

class RunPrefill(_message.Message):
    __slots__ = ("num_computed_tokens", "prompt_stop", "num_restored_tokens")
    NUM_COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_STOP_FIELD_NUMBER: _ClassVar[int]
    NUM_RESTORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_computed_tokens: int
    prompt_stop: int
    num_restored_tokens: int
    def __init__(self, num_computed_tokens: _Optional[int] = ..., prompt_stop: _Optional[int] = ..., num_restored_tokens: _Optional[int] = ...) -> None: ...

class RunToken(_message.Message):
    __slots__ = ("token_id", "text", "logprob", "top_token_ids", "top_logprobs")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    text: str
    logprob: float
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token_id: _Optional[int] = ..., text: _Optional[str] = ..., logprob: _Optional[float] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class RunDone(_message.Message):
    __slots__ = ("reason", "text", "num_generated_tokens", "num_restored_tokens", "queue_ms", "restore_ms", "save_ms", "resident_bytes", "peak_bytes", "full_attention_bytes", "session", "prefill_ms")
    REASON_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_RESTORED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    RESTORE_MS_FIELD_NUMBER: _ClassVar[int]
    SAVE_MS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    FULL_ATTENTION_BYTES_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    PREFILL_MS_FIELD_NUMBER: _ClassVar[int]
    reason: str
    text: str
    num_generated_tokens: int
    num_restored_tokens: int
    queue_ms: float
    restore_ms: float
    save_ms: float
    resident_bytes: int
    peak_bytes: int
    full_attention_bytes: int
    session: RunSession
    prefill_ms: float
    def __init__(self, reason: _Optional[str] = ..., text: _Optional[str] = ..., num_generated_tokens: _Optional[int] = ..., num_restored_tokens: _Optional[int] = ..., queue_ms: _Optional[float] = ..., restore_ms: _Optional[float] = ..., save_ms: _Optional[float] = ..., resident_bytes: _Optional[int] = ..., peak_bytes: _Optional[int] = ..., full_attention_bytes: _Optional[int] = ..., session: _Optional[_Union[RunSession, _Mapping]] = ..., prefill_ms: _Optional[float] = ...) -> None: ...

class RunSession(_message.Message):
    __slots__ = ("version", "saved", "error", "history", "saved_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SAVED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: int
    saved: bool
    error: str
    history: str
    saved_bytes: int
    def __init__(self, version: _Optional[int] = ..., saved: _Optional[bool] = ..., error: _Optional[str] = ..., history: _Optional[str] = ..., saved_bytes: _Optional[int] = ...) -> None: ...
