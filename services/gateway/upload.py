"""A prompt sent in pieces, put together again."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.gateway.limits import MAX_MESSAGES
from services.gateway.prompt import ChatMessage, PromptInput
from services.gateway.receiving import Receiving
from services.pb.swaa.v1 import long_context_pb2 as pb
from swaa_runtime.errors import InvalidRequest


async def collect_upload(
    parts: AsyncIterator[pb.GenerateUploadRequest], receiving: Receiving, max_tokens: int
) -> tuple[PromptInput, pb.Sampling]:
    """The prompt of all pieces, unchecked, and the sampling of the first message.

    Args:
        receiving: is told of each piece before it is kept.
        max_tokens: token ids that the model takes at most.

    Raises:
        InvalidRequest: if the first message is not `request`, a later one is, there are too many bytes, messages or
            token ids of them, or the text is not UTF-8.
        ClientTooSlow: if they come too slowly; OutOfCapacity: if too much is on its way in already.
    """
    sampling: pb.Sampling | None = None
    text = bytearray()
    token_ids: list[int] = []
    messages: list[tuple[str, bytearray]] = []
    async for part in receiving.each(parts, _size):
        kind = part.WhichOneof("part")
        if kind is None or (kind == "request") != (sampling is None):
            raise InvalidRequest("part", kind, "the first message must be `request`, all others pieces of the prompt")
        if kind == "request":
            if part.request.prompt != pb.Prompt():
                raise InvalidRequest("request.prompt", "given", "must be empty in an upload: send it in pieces")
            sampling = part.request.sampling
        elif kind == "text":
            (messages[-1][1] if messages else text).extend(part.text)
        elif kind == "message":
            _check_count("prompt.messages", len(messages) + 1, MAX_MESSAGES)
            messages.append((part.message.role, bytearray(part.message.content.encode())))
        else:
            _check_count("prompt.token_ids", len(token_ids) + len(part.token_ids.token_ids), max_tokens)
            token_ids += part.token_ids.token_ids
    if sampling is None:
        raise InvalidRequest("part", None, "the first message must be `request`")
    chat = [
        ChatMessage(role, _decode(content, f"prompt.messages[{index}].content"))
        for index, (role, content) in enumerate(messages)
    ]
    return PromptInput(_decode(text, "prompt.text"), tuple(token_ids), tuple(chat)), sampling


def _size(part: pb.GenerateUploadRequest) -> int:
    """Bytes of the prompt that it brings."""
    match part.WhichOneof("part"):
        case "text":
            return len(part.text)
        case "message":
            return part.ByteSize()
        case "token_ids":
            return 4 * len(part.token_ids.token_ids)
    return 0


def _check_count(field: str, count: int, most: int) -> None:
    if count > most:
        raise InvalidRequest(field, f"{count} of them", f"must be at most {most}")


def _decode(data: bytearray, field: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        wrong = bytes(data[exc.start : exc.start + 4])
        raise InvalidRequest(field, wrong, f"byte {exc.start} is not UTF-8") from None
