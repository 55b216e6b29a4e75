"""Bytes of tokens: joined, they are the text, also where a token is only a part of a character."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from services.gateway.token_bytes import TokenBytes

TEXT = " The ship\n\tcost 3 \N{EURO SIGN}, \N{SNOWMAN} \N{FAMILY} e\N{COMBINING ACUTE ACCENT} \x00\x7f"


@pytest.mark.model
def test_joined_they_are_the_text(default_model_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_model_folder)
    token_bytes = TokenBytes(tokenizer)
    token_ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    parts = [token_bytes.of(token_id) for token_id in token_ids]
    assert b"".join(parts).decode() == TEXT
    assert any(len(part.decode("utf-8", "ignore").encode()) < len(part) for part in parts), "some are parts"
    assert token_bytes.of(2) == b"<|im_end|>"


def sentence_piece(*pieces: str) -> Any:
    decoder = {"type": "Sequence", "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"}]}
    return SimpleNamespace(
        added_tokens_decoder={0: "</s>"},
        backend_tokenizer=SimpleNamespace(to_str=lambda: json.dumps({"decoder": decoder})),
        convert_ids_to_tokens=lambda token_id: dict(enumerate(pieces)).get(token_id),
    )


def test_pieces_with_byte_fallback() -> None:
    tokens = TokenBytes(sentence_piece("</s>", "\u2581The", "<0xE2>", "<0x82>", "<0xAC>", "\u2581"))
    assert b"".join(tokens.of(token_id) for token_id in range(1, 6)).decode() == " The\N{EURO SIGN} "
    assert tokens.of(0) == b"</s>"
    assert tokens.of(99) == b"", "a vocabulary may be padded"
