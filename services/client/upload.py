"""A request whose prompt does not fit into one message, in pieces."""

from __future__ import annotations

from collections.abc import Iterator

from services.gateway.limits import MAX_PROMPT_BYTES
from services.pb.swaa.v1 import long_context_pb2 as pb

PIECE_BYTES = 1 << 20
"""Of a prompt or of a session's file, in one message."""

TOKEN_ID_BYTES = 5
"""Of a token id in a message, at most."""


def fits(prompt: pb.Prompt) -> bool:
    """Whether the service takes it in one message."""
    contents = sum(len(message.content.encode()) for message in prompt.messages)
    return len(prompt.text.encode()) + contents + TOKEN_ID_BYTES * len(prompt.token_ids) <= MAX_PROMPT_BYTES


def pieces(request: pb.GenerateRequest) -> Iterator[pb.GenerateUploadRequest]:
    """Messages of an upload of it: a new iterator for each attempt."""
    prompt = request.prompt
    yield pb.GenerateUploadRequest(request=pb.GenerateRequest(sampling=request.sampling))
    yield from _text(prompt.text)
    step = PIECE_BYTES // TOKEN_ID_BYTES
    for start in range(0, len(prompt.token_ids), step):
        yield pb.GenerateUploadRequest(token_ids=pb.TokenIds(token_ids=prompt.token_ids[start : start + step]))
    for message in prompt.messages:
        yield pb.GenerateUploadRequest(message=pb.ChatMessage(role=message.role))
        yield from _text(message.content)


def _text(text: str) -> Iterator[pb.GenerateUploadRequest]:
    data = text.encode()
    for start in range(0, len(data), PIECE_BYTES):
        yield pb.GenerateUploadRequest(text=data[start : start + PIECE_BYTES])
