"""Sizes that both ends of the wire agree on: the application refuses a prompt before the transport does."""

from __future__ import annotations

MAX_PROMPT_BYTES = 8 << 20
"""UTF-8 bytes of a prompt in one message."""

MAX_UPLOAD_BYTES = 64 << 20
"""UTF-8 bytes of a prompt sent in pieces."""

MAX_BODY_BYTES = MAX_UPLOAD_BYTES
"""Bytes of an HTTP request's body; a prompt in JSON takes a little more than its UTF-8."""

MAX_JSON_DEPTH = 64
MAX_MESSAGES = 4096
MAX_TOOLS = 128
"""Of a request over HTTP."""

MAX_ARCHIVE_BYTES = 4 << 30
"""KV bytes of an imported session; they are kept in a temporary file until the session is whole."""

ARCHIVE_CHUNK_BYTES = 1 << 20
"""Bytes of an exported session in one message, at most."""

MAX_MESSAGE_BYTES = MAX_PROMPT_BYTES + (1 << 20)
"""gRPC's limit on a message, both ways: above the prompt's, so that the prompt's own error names the bound."""

GRPC_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)
