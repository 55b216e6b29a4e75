"""A prompt sent in pieces, put together again."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.gateway.limits import MAX_UPLOAD_BYTES
from services.gateway.prompt import ChatMessage, PromptInput
from services.pb.swaa.v1 import long_context_pb2 as pb
from swaa_runtime.errors import InvalidRequest


async def collect_upload(parts: AsyncIterator[pb.GenerateUploadRequest]) -> tuple[PromptInput, pb.Sampling]:
    """The prompt of all pieces, unchecked, and the sampling of the first message.

    Raises:
        InvalidRequest: if the first message is not `request`, a later one is, there
            are too many bytes of them, or the text is not UTF-8.
    """
    sampling: pb.Sampling | None = None
    text = bytearray()
    token_ids: list[int] = []
    messages: list[tuple[str, bytearray]] = []
    num_bytes = 0
    async for part in parts:
        kind = part.WhichOneof("part")
        if kind is None or (kind == "request") != (sampling is None):
            raise InvalidRequest("part", kind, "the first message must be `request`, all others pieces of the prompt")
        if kind == "request":
            if part.request.prompt != pb.Prompt():
                raise InvalidRequest("request.prompt", "given", "must be empty in an upload: send it in pieces")
            sampling = part.request.sampling
        elif kind == "text":
            (messages[-1][1] if messages else text).extend(part.text)
            num_bytes += len(part.text)
        elif kind == "message":
            messages.append((part.message.role, bytearray(part.message.content.encode())))
            num_bytes += part.ByteSize()
        else:
            token_ids += part.token_ids.token_ids
            num_bytes += 4 * len(part.token_ids.token_ids)
        if num_bytes > MAX_UPLOAD_BYTES:
            raise InvalidRequest(
                "prompt", f"more than {MAX_UPLOAD_BYTES} bytes", f"must be at most {MAX_UPLOAD_BYTES} bytes"
            )
    if sampling is None:
        raise InvalidRequest("part", None, "the first message must be `request`")
    chat = [
        ChatMessage(role, _decode(content, f"prompt.messages[{index}].content"))
        for index, (role, content) in enumerate(messages)
    ]
    return PromptInput(_decode(text, "prompt.text"), tuple(token_ids), tuple(chat)), sampling


def _decode(data: bytearray, field: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        wrong = bytes(data[exc.start : exc.start + 4])
        raise InvalidRequest(field, wrong, f"byte {exc.start} is not UTF-8") from None
