from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swaa_runtime.detokenizer import REPLACEMENT, IncrementalDetokenizer


class ByteDecoder:
    """A byte-level vocabulary: tokens may begin and end inside a character, and the last is special."""

    VOCABULARY = (
        *(b"a", b"b", b"ab", b"ba", b"aab", b" ", b"abab"),
        *("é".encode(), b"\xc3", b"\xa9", b"a\xc3", b"\xa9b"),
        *("😀".encode(), b"\xf0\x9f", b"\x98", b"\x80", b"b\xf0", b"\x80a\xc3"),
        b"",
    )

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return b"".join(self.VOCABULARY[token_id] for token_id in token_ids).decode("utf-8", errors="replace")

    def encode(self, *pieces: bytes | str) -> list[int]:
        return [self.VOCABULARY.index(p.encode() if isinstance(p, str) else p) for p in pieces]


DECODER = ByteDecoder()
TOKENS = st.lists(st.integers(0, len(ByteDecoder.VOCABULARY) - 1), max_size=25)
STOPS = st.lists(st.text("ab é😀", min_size=1, max_size=5), max_size=3)


def stream(tokens: list[int], stop: list[str] | tuple[str, ...] = ()) -> tuple[list[str], str, int]:
    """What each push gave, what finish gave, and how many tokens were pushed before it stopped."""
    detokenizer = IncrementalDetokenizer(DECODER, stop)
    given_out = []
    for token in tokens:
        given_out.append(detokenizer.push(token))
        if detokenizer.stopped:
            break
    return given_out, detokenizer.finish(), len(given_out)


def up_to_stop(text: str, stop: list[str]) -> str:
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


@given(TOKENS, STOPS)
def test_the_stream_is_the_whole_decode_up_to_the_earliest_stop_string(tokens: list[int], stop: list[str]) -> None:
    given_out, rest, pushed = stream(tokens, stop)
    assert "".join(given_out) + rest == up_to_stop(DECODER.decode(tokens[:pushed]), stop)
    if pushed < len(tokens):
        assert any(s in DECODER.decode(tokens[:pushed]) for s in stop)


@given(TOKENS)
def test_without_stop_strings_every_complete_character_is_given_out_at_once(tokens: list[int]) -> None:
    detokenizer = IncrementalDetokenizer(DECODER)
    text = ""
    for count, token in enumerate(tokens, start=1):
        text += detokenizer.push(token)
        whole = DECODER.decode(tokens[:count])
        assert whole.startswith(text)
        if not whole.endswith(REPLACEMENT):
            assert text == whole


@given(TOKENS, STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(tokens: list[int], stop: list[str]) -> None:
    detokenizer = IncrementalDetokenizer(DECODER, stop)
    text = ""
    for count, token in enumerate(tokens, start=1):
        text += detokenizer.push(token)
        whole = DECODER.decode(tokens[:count])
        if detokenizer.stopped or whole.endswith(REPLACEMENT):
            break
        held = whole[len(text) :]
        assert not held or any(s.startswith(held) for s in stop)


def test_a_stop_string_that_straddles_tokens() -> None:
    given_out, rest, pushed = stream(DECODER.encode("b", "a", "b", " ", "a"), ["ab "])
    assert (given_out, rest, pushed) == (["b", "", "", ""], "", 4)


def test_a_false_start_of_a_stop_string_is_given_out_when_it_fails() -> None:
    given_out, rest, _ = stream(DECODER.encode("a", "b", "b", " "), ["aba"])
    assert (given_out, rest) == (["", "", "abb", " "], "")


def test_a_false_start_of_a_stop_string_is_given_out_at_the_end() -> None:
    assert stream(DECODER.encode("b", "a", "b"), ["aba"]) == (["b", "", ""], "ab", 3)


def test_an_overlapping_start_is_still_found() -> None:
    given_out, rest, _ = stream(DECODER.encode("a", "a", "a", "b"), ["aab"])
    assert ("".join(given_out), rest) == ("a", "")


def test_characters_split_over_tokens_come_whole() -> None:
    given_out, rest, _ = stream(DECODER.encode("a", b"\xf0\x9f", b"\x98", b"\x80", "b"))
    assert (given_out, rest) == (["a", "", "", "😀", "b"], "")


def test_a_character_that_never_completes_is_replaced_at_the_end() -> None:
    assert stream(DECODER.encode("a", b"\xf0\x9f")) == (["a", ""], REPLACEMENT, 2)


def test_special_tokens_give_nothing() -> None:
    assert stream(DECODER.encode("a", "", "b")) == (["a", "", "b"], "", 3)


@pytest.mark.parametrize("tail", [b"a\xc3", b"b\xf0"])
def test_a_stop_string_before_an_incomplete_character_at_the_very_end_still_ends_the_text(tail: bytes) -> None:
    """The last token completes a stop string and begins a character that never comes."""
    given_out, rest, _ = stream(DECODER.encode(" ", tail), [tail[:1].decode()])
    assert "".join(given_out) + rest == " "
