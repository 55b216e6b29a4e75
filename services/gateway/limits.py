"""Sizes that both ends of the wire agree on: the application refuses a prompt before the transport does."""

from __future__ import annotations

MAX_PROMPT_BYTES = 8 << 20
"""UTF-8 bytes of a prompt in one message."""

MAX_UPLOAD_BYTES = 64 << 20
"""UTF-8 bytes of a prompt sent in pieces."""

MAX_BODY_BYTES = MAX_UPLOAD_BYTES
"""Bytes of an HTTP request's body; a prompt in JSON takes a little more than its UTF-8."""

MAX_MESSAGES = 4096
"""Of one prompt, over either wire."""

MAX_TOOLS = 128

MAX_JSON_DEPTH = 64

MAX_JSON_VALUES = 1 << 21
"""In a request's body: more than any model takes as token ids. Each takes some sixty bytes once it is read."""

MAX_ARCHIVE_BYTES = 4 << 30
"""KV bytes of an imported session; they are kept in a temporary file until the session is whole."""

ARCHIVE_CHUNK_BYTES = 1 << 20
"""Bytes of an exported session in one message, at most."""

MAX_IMPORTS = 4
"""Archives that one gateway reads at a time: each may fill a temporary file."""

PAUSE_TIMEOUT_S = 30.0
"""How long the next piece of a request may take."""

MIN_RECEIVE_BYTES_PER_S = 1 << 10
"""A request that comes in pieces has `PAUSE_TIMEOUT_S`, and a second for each so many bytes that have come."""

READ_TIMEOUT_S = 60.0
"""How long a client may leave what is written to it unread, with no room to write more. Then it is cut off."""

MAX_HEADER_BYTES = 16 << 10
"""Of a request's headers together; gRPC counts 32 bytes more for each, so there are at most 512 of them."""

MAX_CALLS = 2048
"""Calls of a gRPC server at a time, over all its connections: each may hold a message of MAX_MESSAGE_BYTES."""

MAX_STREAMS = 128
"""Calls at a time on one gRPC connection; more wait at the client."""

MIN_PING_INTERVAL_S = 10.0
MAX_EARLY_PINGS = 2
"""A client that pings more often than that while it waits is cut off with the third."""

PING_INTERVAL_S, PING_TIMEOUT_S = 60.0, 20.0
"""The gateway's own pings: a client whose machine is gone is noticed by them."""

MAX_IDLE_S, MAX_CONNECTION_AGE_S = 300.0, 3600.0
"""Connections without a call are closed; old ones, too, once their calls have ended."""

MAX_MESSAGE_BYTES = MAX_PROMPT_BYTES + (1 << 20)
"""gRPC's limit on a message, both ways: above the prompt's, so that the prompt's own error names the bound."""

GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)

SERVER_OPTIONS = (
    *GRPC_OPTIONS,
    # One bound, not two: between them gRPC would refuse at random.
    ("grpc.max_metadata_size", MAX_HEADER_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_HEADER_BYTES),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", int(MIN_PING_INTERVAL_S * 1e3)),
    ("grpc.http2.max_ping_strikes", MAX_EARLY_PINGS),
    ("grpc.keepalive_time_ms", int(PING_INTERVAL_S * 1e3)),
    ("grpc.keepalive_timeout_ms", int(PING_TIMEOUT_S * 1e3)),
    ("grpc.max_connection_idle_ms", int(MAX_IDLE_S * 1e3)),
    ("grpc.max_connection_age_ms", int(MAX_CONNECTION_AGE_S * 1e3)),
)
"""Of the gateway's server. How many connections there may be is a setting."""
