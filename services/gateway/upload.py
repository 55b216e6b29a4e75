"""A prompt sent in pieces, put together again."""

from __future__ import annotations

from collections.abc import AsyncIterator

from services.gateway.limits import MAX_UPLOAD_BYTES
from services.gateway.prompt import PromptInput
from services.pb.swaa.v1 import long_context_pb2 as pb
from swaa_runtime.errors import InvalidRequest


async def collect_upload(parts: AsyncIterator[pb.GenerateUploadRequest]) -> tuple[PromptInput, pb.Sampling]:
    """The prompt of all pieces and the sampling of the first message.

    Raises:
        InvalidRequest: if the first message is not `request`, a later one is, the pieces mix text and token ids, there
            are too many bytes of them, or the text is not UTF-8.
    """
    sampling: pb.Sampling | None = None
    text = bytearray()
    token_ids: list[int] = []
    async for part in parts:
        kind = part.WhichOneof("part")
        if kind is None or (kind == "request") != (sampling is None):
            raise InvalidRequest("part", kind, "the first message must be `request`, all others pieces of the prompt")
        if kind == "request":
            if part.request.prompt != pb.Prompt():
                raise InvalidRequest("request.prompt", "given", "must be empty in an upload: send it in pieces")
            sampling = part.request.sampling
        elif kind == "text":
            text += part.text
        else:
            token_ids += part.token_ids.token_ids
        if len(text) + 4 * len(token_ids) > MAX_UPLOAD_BYTES:
            raise InvalidRequest(
                "prompt", f"more than {MAX_UPLOAD_BYTES} bytes", f"must be at most {MAX_UPLOAD_BYTES} bytes"
            )
    if sampling is None:
        raise InvalidRequest("part", None, "the first message must be `request`")
    return PromptInput(text=_decode(bytes(text)), token_ids=tuple(token_ids)), sampling


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidRequest("prompt.text", data[exc.start : exc.start + 4], f"byte {exc.start} is not UTF-8") from None
