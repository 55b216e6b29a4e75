"""What is refused of a prompt, and that a continued chat reads as one chat. With the shipped model's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from services.gateway.limits import MAX_PROMPT_BYTES
from services.gateway.prompt import ChatMessage, PromptEncoder, PromptInput, ToolCall, Tools
from swaa_runtime.errors import InvalidRequest, ModelNotSupported

VOCAB_SIZE, MAX_MODEL_TOKENS = 49152, 8192
EOS = "<|im_end|>"

SYSTEM = ChatMessage("system", "You keep the harbour's log.")
USER = ChatMessage("user", "Which ship came first?\n")
AGAIN = ChatMessage("user", "And which one after it?")
TOOL = ChatMessage("tool", "3 ships")


@pytest.fixture(scope="module")
def tokenizer(default_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(default_model_folder)


@pytest.fixture
def encoder(tokenizer: Any) -> PromptEncoder:
    return PromptEncoder(tokenizer, VOCAB_SIZE, MAX_MODEL_TOKENS)


def refused(prompt: PromptInput, **options: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        prompt.check(**options)
    return caught.value


def test_nothing_is_no_prompt() -> None:
    assert "must not be empty" in refused(PromptInput()).bound


@pytest.mark.parametrize(
    ("prompt", "given"),
    [
        (PromptInput("a", (1,)), "text and token_ids"),
        (PromptInput("a", messages=(USER,)), "text and messages"),
        (PromptInput(token_ids=(1,), messages=(USER,)), "token_ids and messages"),
        (PromptInput("a", (1,), (USER,)), "text and token_ids and messages"),
    ],
)
def test_one_form_only(prompt: PromptInput, given: str) -> None:
    error = refused(prompt)
    assert (error.field, error.value) == ("prompt", given)
    assert "exactly one" in error.bound


@pytest.mark.parametrize("role", ["", "robot", "User", "user "])
def test_roles_are_known(role: str) -> None:
    error = refused(PromptInput(messages=(USER, ChatMessage(role, "hello"))))
    assert (error.field, error.value) == ("prompt.messages[1].role", role)
    assert error.bound == "must be one of system, user, assistant, tool"


def test_messages_say_something() -> None:
    error = refused(PromptInput(messages=(SYSTEM, ChatMessage("user", ""))))
    assert error.field == "prompt.messages[1].content"


def test_bytes_are_counted_not_characters() -> None:
    PromptInput("x" * 10).check(max_bytes=10)
    PromptInput("\N{EURO SIGN}" * 3).check(max_bytes=9)
    for prompt in (
        PromptInput("x" * 11),
        PromptInput("\N{EURO SIGN}" * 4),
        PromptInput(messages=(ChatMessage("user", "x" * 6), ChatMessage("user", "y" * 5))),
    ):
        error = refused(prompt, max_bytes=10)
        assert error.bound == "must be at most 10 bytes"
        assert error.value in ("11 bytes", "12 bytes")


def test_one_message_takes_8_mib() -> None:
    PromptInput("x" * MAX_PROMPT_BYTES).check()
    assert refused(PromptInput("x" * (MAX_PROMPT_BYTES + 1))).field == "prompt"


@pytest.mark.model
class TestEncoding:
    def test_token_ids_pass_through(self, encoder: PromptEncoder) -> None:
        assert encoder.encode(PromptInput(token_ids=(0, 5, VOCAB_SIZE - 1)), ()) == [0, 5, VOCAB_SIZE - 1]

    def test_token_ids_are_in_the_vocabulary(self, encoder: PromptEncoder) -> None:
        with pytest.raises(InvalidRequest) as caught:
            encoder.encode(PromptInput(token_ids=(1, VOCAB_SIZE)), ())
        assert str(caught.value) == f"prompt.token_ids[1] is {VOCAB_SIZE}: must be in 0..{VOCAB_SIZE - 1}"

    def test_text_is_tokenized_as_it_is(self, encoder: PromptEncoder, tokenizer: Any) -> None:
        token_ids = encoder.encode(PromptInput("  The ship\n\n left. "), ())
        assert tokenizer.decode(token_ids) == "  The ship\n\n left. "

    def test_history_and_prompt_leave_room_for_a_token(self, encoder: PromptEncoder) -> None:
        history = [1] * (MAX_MODEL_TOKENS - 11)
        assert len(encoder.encode(PromptInput(token_ids=(1,) * 10), history)) == 10
        with pytest.raises(InvalidRequest) as caught:
            encoder.encode(PromptInput(token_ids=(1,) * 11), history)
        assert caught.value.field == "prompt"
        assert caught.value.value == f"11 tokens after {len(history)} of history"
        assert caught.value.bound == f"history and prompt must be under {MAX_MODEL_TOKENS} tokens"

    def test_a_first_chat_is_the_template(self, encoder: PromptEncoder, tokenizer: Any) -> None:
        chat = [{"role": m.role, "content": m.content} for m in (SYSTEM, USER)]
        expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        token_ids = encoder.encode(PromptInput(messages=(SYSTEM, USER)), ())
        assert tokenizer.decode(token_ids) == expected
        assert expected.endswith("<|im_start|>assistant\n")

    @pytest.mark.parametrize("first", [(USER,), (SYSTEM, USER)], ids=["user", "system-user"])
    @pytest.mark.parametrize("more", [(AGAIN,), (TOOL,), (TOOL, AGAIN)], ids=["user", "tool", "tool-user"])
    @pytest.mark.parametrize("ended", [True, False], ids=["eos", "cut-off"])
    def test_a_continued_chat_is_the_whole_chat(
        self,
        encoder: PromptEncoder,
        tokenizer: Any,
        first: tuple[ChatMessage, ...],
        more: tuple[ChatMessage, ...],
        ended: bool,
    ) -> None:
        answer = "The Aurora came first, at dawn."
        history = encoder.encode(PromptInput(messages=first), ())
        history += tokenizer(answer + (EOS if ended else ""), add_special_tokens=False)["input_ids"]
        turn = encoder.encode(PromptInput(messages=more), history)

        chat = [{"role": m.role, "content": m.content} for m in (*first, ChatMessage("assistant", answer), *more)]
        whole = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode([*history, *turn]) == whole
        assert [*history, *turn] == tokenizer(whole, add_special_tokens=False)["input_ids"]

    def test_text_after_a_history_is_added_as_it_is(self, encoder: PromptEncoder, tokenizer: Any) -> None:
        assert tokenizer.decode(encoder.encode(PromptInput(" and then"), (1, 2, 3))) == " and then"

    def test_a_template_that_does_not_know_thinking_is_not_asked_to(self, encoder: PromptEncoder) -> None:
        with pytest.raises(ModelNotSupported, match="asks for thinking"):
            encoder.encode(PromptInput(messages=(USER,)), (), thinking=True)


class TemplateTokenizer:
    """A tokenizer of characters with a chat template of the test's own."""

    chat_template = "a template"
    eos_token, eos_token_id = "$", ord("$")

    def __init__(self, render: Any) -> None:
        self._render = render

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(character) for character in text]}

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        return str(self._render(messages, **options))


def chat_encoder(render: Any, **attributes: Any) -> PromptEncoder:
    tokenizer = TemplateTokenizer(render)
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    return PromptEncoder(tokenizer, VOCAB_SIZE, MAX_MODEL_TOKENS)


def test_without_a_template_messages_are_refused() -> None:
    encoder = chat_encoder(None, chat_template=None)
    with pytest.raises(ModelNotSupported, match="no chat template; send text or token ids"):
        encoder.encode(PromptInput(messages=(USER,)), ())


def test_what_a_template_refuses_is_the_clients_fault() -> None:
    def refuse(messages: Any, **_: Any) -> str:
        raise RuntimeError("roles must alternate")

    with pytest.raises(InvalidRequest, match="the chat template refuses: roles must alternate"):
        chat_encoder(refuse).encode(PromptInput(messages=(USER, USER)), ())


def test_a_template_that_forgets_earlier_turns_cannot_continue() -> None:
    encoder = chat_encoder(lambda messages, **_: messages[-1]["content"])
    encoder.encode(PromptInput(messages=(USER,)), ())
    with pytest.raises(ModelNotSupported, match="drops earlier turns"):
        encoder.encode(PromptInput(messages=(AGAIN,)), (1, 2))


def test_a_template_that_renders_nothing_gives_no_prompt() -> None:
    with pytest.raises(InvalidRequest, match="must have at least one token"):
        chat_encoder(lambda messages, **_: "").encode(PromptInput(messages=(USER,)), ())


def test_thinking_reaches_the_template_that_knows_it() -> None:
    encoder = chat_encoder(lambda messages, **options: f"{options['enable_thinking']}", chat_template="enable_thinking")
    assert bytes(encoder.encode(PromptInput(messages=(USER,)), (), thinking=True)) == b"True"
    assert bytes(encoder.encode(PromptInput(messages=(USER,)), ())) == b"False"


LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALLS = ChatMessage("assistant", "", (ToolCall("c", "look", {"at": 1}),))


def shows(messages: Any, **options: Any) -> str:
    return repr((messages, {name: options[name] for name in ("tools", "tool_choice") if name in options}))


def shown(encoder: PromptEncoder, prompt: PromptInput) -> Any:
    prompt.check()
    return bytes(encoder.encode(prompt, ())).decode()


def test_tools_reach_the_template_that_knows_them() -> None:
    encoder = chat_encoder(shows, chat_template="tools")
    asked = PromptInput(messages=(USER,), tools=Tools((LOOK,)))
    assert shown(encoder, asked) == repr(([{"role": "user", "content": USER.content}], {"tools": [LOOK]}))
    none = PromptInput(messages=(USER,), tools=Tools((LOOK,), "none"))
    assert shown(encoder, none) == shown(encoder, PromptInput(messages=(USER,)))
    for choice in ("required", {"type": "function", "function": {"name": "look"}}):
        with pytest.raises(ModelNotSupported, match="knows no choice, only 'auto' and 'none'"):
            shown(encoder, PromptInput(messages=(USER,), tools=Tools((LOOK,), choice)))


def test_a_choice_of_tools_reaches_the_template_that_knows_it() -> None:
    encoder = chat_encoder(shows, chat_template="tools tool_choice")
    assert "'tool_choice': 'required'" in shown(
        encoder, PromptInput(messages=(USER,), tools=Tools((LOOK,), "required"))
    )


def test_calls_and_results_reach_the_template_that_knows_them() -> None:
    result = ChatMessage("tool", "a ship", tool_call_id="c", name="look")
    text = shown(chat_encoder(shows, chat_template="tool_calls"), PromptInput(messages=(USER, CALLS, result)))
    called = {"type": "function", "id": "c", "function": {"name": "look", "arguments": {"at": 1}}}
    assert repr({"role": "assistant", "content": "", "tool_calls": [called]}) in text
    assert repr({"role": "tool", "content": "a ship", "tool_call_id": "c", "name": "look"}) in text


def test_what_a_template_does_not_know_is_refused() -> None:
    encoder = chat_encoder(shows)
    with pytest.raises(ModelNotSupported, match="does not know tools"):
        shown(encoder, PromptInput(messages=(USER,), tools=Tools((LOOK,))))
    with pytest.raises(ModelNotSupported, match="messages have tool_calls"):
        shown(encoder, PromptInput(messages=(USER, CALLS)))


def test_tools_belong_to_a_sessions_first_turn() -> None:
    encoder = chat_encoder(shows, chat_template="tools")
    with pytest.raises(InvalidRequest, match="give them in a session's first turn"):
        encoder.encode(PromptInput(messages=(USER,), tools=Tools((LOOK,))), (1, 2))


def test_bytes_of_tools_are_counted() -> None:
    big = {"type": "function", "function": {"name": "look", "description": "x" * 100}}
    assert refused(PromptInput(messages=(USER,), tools=Tools((big,))), max_bytes=100).field == "prompt"
    calls = ChatMessage("assistant", "", (ToolCall("c", "look", {"at": "x" * 100}),))
    assert refused(PromptInput(messages=(USER, calls)), max_bytes=100).field == "prompt"
