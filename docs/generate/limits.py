"""What is bounded of what a stranger controls, by the constants and settings that bound it."""

from __future__ import annotations

from docs.generate.markdown import code, table
from services import http_connection, http_server
from services.config import ServeConfig
from services.gateway import limits, prompt, session_admin, sla, template
from services.replica.wire import MAX_RUN_BYTES
from services.sessions.archive import MAX_MANIFEST_BYTES
from swaa_runtime import request

SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def limits_table() -> str:
    """Every one of them, and what is answered beyond it."""
    rows = [[what, bound, answer] for what, bound, answer in _rows()]
    return table(["what", "bound", "beyond it"], rows)


def _rows() -> list[tuple[str, str, str]]:
    invalid, full, cut = "`INVALID_ARGUMENT` / 400", "`RESOURCE_EXHAUSTED` / 429", "the connection is closed"
    late = "`DEADLINE_EXCEEDED` / 408"
    pace = f"{_s(limits.PAUSE_TIMEOUT_S)} a pause, then {_bytes(limits.MIN_RECEIVE_BYTES_PER_S)} a second in all"
    pings = f"{limits.MAX_EARLY_PINGS} sooner than every {_s(limits.MIN_PING_INTERVAL_S)}"
    own_pings = f"every {_s(limits.PING_INTERVAL_S)}, {_s(limits.PING_TIMEOUT_S)} for the answer"
    writes = f"8 times what it is given, and {_count(template.MAX_ADDED_CHARACTERS)} characters"
    return [
        ("Connections at a time, of each wire", _setting("max_connections"), "closed / 503"),
        ("Connections at a time of a replica's metrics", str(http_server.MAX_CONNECTIONS), "503"),
        ("Calls at a time of a gRPC gateway", str(limits.MAX_CALLS), "`RESOURCE_EXHAUSTED`"),
        ("Calls at a time on a gRPC connection", str(limits.MAX_STREAMS), "they wait at the client"),
        ("A gRPC connection without a call", _s(limits.MAX_IDLE_S), cut),
        ("Age of a gRPC connection", _s(limits.MAX_CONNECTION_AGE_S), "closed once its calls have ended"),
        ("Pings of a gRPC client that waits", pings, "`ENHANCE_YOUR_CALM`, " + cut),
        ("The gateway's own pings", own_pings, cut),
        ("Headers of a request, gRPC", _bytes(limits.MAX_HEADER_BYTES), "`RESOURCE_EXHAUSTED`"),
        ("Line and headers of a request, HTTP", _bytes(http_connection.MAX_HEAD_BYTES), "431, or 400"),
        ("Time for them, HTTP", _s(http_connection.HEAD_TIMEOUT_S), cut),
        ("A message, gRPC", _bytes(limits.MAX_MESSAGE_BYTES), "`RESOURCE_EXHAUSTED`"),
        ("A message between gateway and replica", _bytes(MAX_RUN_BYTES), "`RESOURCE_EXHAUSTED`"),
        ("A body, HTTP", _bytes(limits.MAX_BODY_BYTES), "413"),
        ("A prompt in one message", _bytes(limits.MAX_PROMPT_BYTES), invalid),
        ("A prompt in pieces, or over HTTP", _bytes(limits.MAX_UPLOAD_BYTES), invalid),
        ("All bodies and uploads on their way in", _setting("receive_memory_mib"), full),
        ("Pace of bodies, uploads and imports", pace, late),
        ("An answer that is not read, gRPC", _s(limits.READ_TIMEOUT_S), late + ", and all it holds is freed"),
        ("An answer that is not read, HTTP", _s(http_connection.READ_TIMEOUT_S), cut + ", and all it holds is freed"),
        ("Tokens of history, prompt and answer", "the model's `max_model_tokens`", invalid),
        ("Characters of a text, before it is cut", f"{prompt.MAX_CHARACTERS_PER_TOKEN} for each such token", invalid),
        ("Messages of a prompt", _count(limits.MAX_MESSAGES), invalid),
        ("Tools", _count(limits.MAX_TOOLS), invalid),
        ("Depth of JSON", _count(limits.MAX_JSON_DEPTH), invalid),
        ("Values in a body's JSON", _count(limits.MAX_JSON_VALUES), invalid),
        ("Stop strings", f"{request.MAX_STOP_STRINGS}, of {_count(request.MAX_STOP_CHARACTERS)} characters", invalid),
        ("Log-probabilities of a token", str(request.MAX_LOGPROBS), invalid),
        ("Seeds", "2^63 - 1", invalid),
        ("Answers of a request (`n`)", "1", invalid),
        ("An idempotency key", f"{sla.MAX_KEY_CHARACTERS} printable ASCII characters", invalid),
        ("A session's id", "64 characters `A-Z a-z 0-9 _ -`", invalid),
        ("Recipes and classes", "by the catalogue's names; a request brings none of its own", invalid),
        ("Sessions listed", _count(session_admin.MAX_SESSIONS_LISTED), invalid),
        ("A chat template: its size", f"{_count(template.MAX_TEMPLATE_CHARACTERS)} characters", invalid),
        ("A chat template: turns of loops, and calls", _count(template.MAX_STEPS), invalid),
        ("A chat template: numbers it gives to calls", _count(template.MAX_NUMBER), invalid),
        ("A chat template: what it writes", writes, invalid),
        ("An archive's manifest", _bytes(MAX_MANIFEST_BYTES), "`DATA_LOSS`"),
        ("An archive's KV", _bytes(limits.MAX_ARCHIVE_BYTES), invalid),
        ("An archive's segments", "the sizes that the model's shape gives, also once decompressed", "`DATA_LOSS`"),
        ("An exported archive's pieces", _bytes(limits.ARCHIVE_CHUNK_BYTES), ""),
        ("Imports at a time", str(limits.MAX_IMPORTS), full),
        ("Requests that run", _setting("max_running"), "they wait"),
        ("Requests that wait", _setting("max_waiting"), full),
        ("Stored bytes of a tenant", _setting("session_quota_mib"), full),
    ]


def _setting(name: str) -> str:
    default = ServeConfig.model_fields[name].default
    return code(f"SWAA_{name.upper()}") + ("" if default is None else f" ({default:,})")


def _s(seconds: float) -> str:
    return f"{seconds:g} s"


def _count(number: int) -> str:
    return f"{number:,}"


def _bytes(number: int) -> str:
    for size, unit in SIZES:
        if number % size == 0 and number >= size:
            return f"{number // size} {unit}"
    raise ValueError(f"{number} bytes are no whole KiB")
