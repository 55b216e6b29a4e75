"""The bytes of single tokens. A token may be part of a character, so its text alone can be less than it says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space


class TokenBytes:
    """Of one fast tokenizer: byte-level BPE (GPT-2, Llama 3, Qwen), or SentencePiece's pieces with byte fallback."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = {int(token_id): str(token) for token_id, token in tokenizer.added_tokens_decoder.items()}
        self._by_character = _byte_level() if _is_byte_level(tokenizer) else None

    def of(self, token_id: int) -> bytes:
        """What the token adds to a text; of a special token its name."""
        if token_id in self._special:
            return self._special[token_id].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token_id)
        if piece is None:  # the model's vocabulary is padded beyond the tokenizer's
            return b""
        if self._by_character is not None:
            return bytes(self._by_character[character] for character in piece)
        if byte := _BYTE_TOKEN.fullmatch(piece):
            return bytes([int(byte[1], 16)])
        return str(piece).replace(_SPACE, " ").encode()


def _is_byte_level(tokenizer: Any) -> bool:
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    return any(part["type"] == "ByteLevel" for part in (decoder, *decoder.get("decoders", ())) if part)


def _byte_level() -> Mapping[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others for 256 and up, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
