from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SavedTurn(_message.Message):
    __slots__ = ("prompt_tokens", "generated_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    generated_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ...) -> None: ...

class SavedSegment(_message.Message):
    __slots__ = ("layers", "start", "stop", "id", "num_bytes")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    start: int
    stop: int
    id: bytes
    num_bytes: int
    def __init__(self, layers: _Optional[_Iterable[int]] = ..., start: _Optional[int] = ..., stop: _Optional[int] = ..., id: _Optional[bytes] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class SessionState(_message.Message):
    __slots__ = ("session_id", "version", "token_ids", "turns", "recipe_json", "recipe_name", "model_fingerprint", "num_kv_tokens", "segments", "created_at_s", "updated_at_s", "expires_at_s", "kv_format", "idempotency_key")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TURNS_FIELD_NUMBER: _ClassVar[int]
    RECIPE_JSON_FIELD_NUMBER: _ClassVar[int]
    RECIPE_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_S_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_S_FIELD_NUMBER: _ClassVar[int]
    KV_FORMAT_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    version: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    turns: _containers.RepeatedCompositeFieldContainer[SavedTurn]
    recipe_json: str
    recipe_name: str
    model_fingerprint: str
    num_kv_tokens: int
    segments: _containers.RepeatedCompositeFieldContainer[SavedSegment]
    created_at_s: float
    updated_at_s: float
    expires_at_s: float
    kv_format: str
    idempotency_key: str
    def __init__(self, session_id: _Optional[str] = ..., version: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., turns: _Optional[_Iterable[_Union[SavedTurn, _Mapping]]] = ..., recipe_json: _Optional[str] = ..., recipe_name: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., num_kv_tokens: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[SavedSegment, _Mapping]]] = ..., created_at_s: _Optional[float] = ..., updated_at_s: _Optional[float] = ..., expires_at_s: _Optional[float] = ..., kv_format: _Optional[str] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class PrefixState(_message.Message):
    __slots__ = ("prefix_id", "num_tokens", "segments")
    PREFIX_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    prefix_id: str
    num_tokens: int
    segments: _containers.RepeatedCompositeFieldContainer[SavedSegment]
    def __init__(self, prefix_id: _Optional[str] = ..., num_tokens: _Optional[int] = ..., segments: _Optional[_Iterable[_Union[SavedSegment, _Mapping]]] = ...) -> None: ...
