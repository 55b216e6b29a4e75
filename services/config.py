"""What the service is started with: environment variables SWAA_*, then command line flags over them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.sessions.policy import SessionPolicy
from services.sessions.store import KVFormat
from services.telemetry.logs import LogFormat
from swaa_runtime.config import DenseAttentionName, KVDtypeName, SchedulingPolicy
from swaa_runtime.errors import InvalidRequest

PREFIX = "SWAA_"
CLIENT_VARIABLES = frozenset(
    {
        "SWAA_API_KEY",
        "SWAA_API_KEY_FILE",
        "SWAA_CLIENT_TLS",
        "SWAA_CLIENT_CA_FILE",
        "SWAA_CLIENT_CERT_FILE",
        "SWAA_CLIENT_KEY_FILE",
    }
)
"""Not settings of a service: the `swaa` commands that connect to one read them."""


def _none_if_auto(value: object) -> object:
    return None if value == "auto" else value


class ServeConfig(BaseSettings):
    """Settings of a service, or of a gateway or replica. Unknown names and values that do not parse are errors."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    model: str = Field("smollm2", description="'smollm2' (shipped as a package) or a Hugging Face model folder")
    catalog: Path | None = Field(
        None, description="YAML of recipes, SLA classes and quality; the one shipped for the model's name if absent"
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="what the model runs on")
    tensor_parallel: int = Field(
        1, ge=1, description="GPUs of one host that compute the model together; on cpu: processes, to try it"
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="auto: bfloat16 where the processor computes in it, float32 where it would emulate it"
    )
    adapters: str | None = Field(
        None,
        description="LoRA adapters for recipes: name=folder,..., or a folder of them; absent: the default model's own",
    )
    allow_pickle_weights: bool = Field(
        False,
        description="load a model's .bin or .pt files, which run code of whoever made them",
    )
    attention_backend: Literal["auto", "windowed", "triton", "reference"] = Field(
        "auto",
        description="triton (our kernels) is for cuda, windowed for any device, reference its slow twin, to compare; "
        "auto: triton on cuda where it takes the model, else windowed",
    )
    dense_attention: DenseAttentionName = Field(
        "auto", description="of a triton backend's layers that see everything: cudnn, flash (flash-attn), or the faster"
    )
    skip_unseen: bool = Field(
        False, description="of a triton backend: skip layers of which later tokens see nothing; predictions ignore it"
    )
    kv_dtype: KVDtypeName = Field(
        "model", description="what a triton backend keeps K and V in: the model's dtype, or int8 or fp8 (half, lossy)"
    )
    kv_memory_mib: Annotated[int | None, BeforeValidator(_none_if_auto)] = Field(
        None,
        ge=1,
        description="size of the KV pool, all GPUs'; auto or absent: on cuda what weights and steps leave; on cpu 2048",
    )
    block_size_tokens: int = Field(
        32,
        ge=1,
        description="tokens of one layer that a block of the KV pool holds; triton's: a power of two, at least 16",
    )
    max_step_tokens: int = Field(1024, ge=1, description="token budget of one engine step")
    interrupt_tokens: int = Field(
        2048,
        ge=0,
        description="prompts of at most so many tokens run between the layers of steps of at least so many, which else "
        "they wait for; 0: none; not with tensor_parallel",
    )
    max_running: int = Field(64, ge=1, description="requests that hold KV memory at a time")
    max_waiting: int = Field(256, ge=0, description="requests beyond them that may wait; more are refused")
    max_queued_ms: float | None = Field(
        None, ge=0, description="requests are refused while prompts are predicted to take longer; no bound if absent"
    )
    swap_memory_mib: int = Field(1024, ge=0, description="host memory for preempted requests; 0: none is preempted")
    scheduling_policy: SchedulingPolicy = Field("slack", description="slack (least slack first) or fcfs, to compare")
    listen: str = Field("127.0.0.1:50051", description="host:port of the gRPC gateway; port 0 picks a free one")
    http_listen: str = Field(
        "127.0.0.1:8080", description="host:port of the gateway's HTTP; port 0 picks a free one; empty: no HTTP"
    )
    tls_cert_file: Path | None = Field(
        None, description="PEM certificate of gRPC and HTTP, with its chain; read again when it changes; absent: no TLS"
    )
    tls_key_file: Path | None = Field(None, description="PEM key of that certificate, not encrypted")
    tls_client_ca_file: Path | None = Field(
        None, description="PEM of authorities; clients must show a certificate of one of them; absent: they need none"
    )
    insecure_public: bool = Field(
        False, description="listen where other machines reach it without TLS or authentication; for development"
    )
    max_connections: int = Field(
        1024, ge=1, description="client connections at a time, of gRPC and of HTTP each; more are refused"
    )
    receive_memory_mib: int = Field(
        512, ge=64, description="request bodies and uploads that are on their way in, together; more are refused"
    )
    replicas: str | None = Field(None, description="address of Ray Serve's gRPC proxy; the gateway alone needs it")
    application: str = Field("", description="Serve application of a gateway's replicas, if there are several")
    replica_host: str = Field("127.0.0.1", description="address that a replica listens on and tells gateways")
    replica_port: int = Field(0, ge=0, le=65535, description="0 picks a free one")
    replica_tls_cert_file: Path | None = Field(
        None,
        description="PEM certificate of a gateway or replica for the other, a replica's for the name swaa-replica",
    )
    replica_tls_key_file: Path | None = Field(None, description="PEM key of that certificate, not encrypted")
    replica_tls_ca_file: Path | None = Field(
        None, description="PEM of the authority that both ends' certificates are of"
    )
    redis_url: str | None = Field(None, description="session store; a private Redis is started if absent")
    redis_timeout_s: float = Field(
        10.0, gt=0, description="how long one round trip may take before the store counts as away"
    )
    session_ttl_s: float = Field(86400.0, gt=0, description="seconds a session lives after its last turn")
    session_kv_format: KVFormat = Field("raw", description="raw, zstd (lossless, smaller, slower), int8 or fp8 (lossy)")
    session_max_kv_mib: int = Field(4096, ge=0, description="of larger KV states only the tokens are kept")
    session_quota_mib: int | None = Field(
        None, ge=1, description="stored MiB of a tenant without a quota of its own; unlimited if absent"
    )
    api_keys_file: Path | None = Field(
        None, description="API keys that are taken, as `swaa keys` writes them; read again when it changes"
    )
    jwt_keys_file: Path | None = Field(
        None, description="public keys (PEM, or a JSON Web Key Set) of who signs tokens; read again when it changes"
    )
    jwt_issuer: str = Field("", description="who signs them: claim `iss`; must be given with the keys")
    jwt_audience: str = Field("", description="whom they are for: claim `aud`; must be given with the keys")
    jwt_algorithms: str = Field(
        "RS256,ES256,EdDSA", description="algorithms that are taken, of RS, PS or ES with 256, 384 or 512, and EdDSA"
    )
    jwt_tenant_claim: str = Field("tenant", description="the claim that names the tenant")
    jwt_leeway_s: float = Field(30.0, ge=0, le=300, description="by how many seconds clocks may differ")
    checkpoint_tokens: int = Field(
        1024,
        ge=0,
        description="a session's prompt is saved at multiples of this while prefilled; 0: at its end only",
    )
    prefix_ttl_s: float = Field(
        3600.0, ge=0, description="seconds that other sessions may start from such a saved prompt; 0: not at all"
    )
    drain_s: float = Field(10.0, ge=0, description="seconds that running requests may take when the service stops")
    cache_dir: Path = Field(Path("~/.cache/swaa"), description="converted models and cost profiles; may be deleted")
    state_dir: Path = Field(Path("~/.local/state/swaa"), description="the private Redis keeps sessions here")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="the least that is logged")
    log_format: LogFormat = Field("text", description="text, or json: one object a line")
    metrics_listen: str = Field(
        "",
        description="host:port of plain HTTP for operators: /metrics, and a gateway's probes; empty: none",
    )
    otlp_endpoint: str = Field(
        "", description="where traces go, by OTLP over gRPC: http://host:port; empty: nowhere; needs swaa[telemetry]"
    )

    @property
    def authenticates(self) -> bool:
        """Whether clients need credentials."""
        return self.api_keys_file is not None or self.jwt_keys_file is not None

    @property
    def session_quota_bytes(self) -> int | None:
        """Stored bytes per tenant; None: no bound."""
        return None if self.session_quota_mib is None else self.session_quota_mib << 20

    @property
    def session_policy(self) -> SessionPolicy:
        """How sessions are kept."""
        return SessionPolicy(self.session_ttl_s, self.session_kv_format, self.checkpoint_tokens, self.prefix_ttl_s)


def load_config(**overrides: Any) -> ServeConfig:
    """Environment, and what is not None of `overrides` over it.

    Raises:
        InvalidRequest: for an SWAA_ variable that does not exist.
        pydantic.ValidationError: for a value out of bounds.
    """
    known = {PREFIX + name.upper() for name in ServeConfig.model_fields}
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known | CLIENT_VARIABLES:
            # Its value is not told: it may be a secret under a misspelled name.
            raise InvalidRequest(name, "(not shown)", f"unknown setting; known are {', '.join(sorted(known))}")
    return ServeConfig(**{name: value for name, value in overrides.items() if value is not None})
