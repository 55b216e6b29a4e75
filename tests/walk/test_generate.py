"""One prompt through the whole path: the events, their figures, and that the same request gives the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from services.pb.swaa.v1 import long_context_pb2 as pb

from .harness import (
    KV_BYTES_PER_TOKEN,
    QUESTION,
    Service,
    Turn,
    assert_same_but_for_ties,
    log_of,
    open_turn,
    recipes_with_a_tail,
    run_turn,
)

pytestmark = [pytest.mark.model, pytest.mark.redis]

TEXT = log_of(4) + QUESTION


@pytest.fixture(scope="module")
def tokenizer(default_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(default_model_folder)


@pytest.fixture(scope="module")
def turn(service: Service) -> Turn:
    """A turn of 24 tokens under full attention."""
    return run_turn(service, TEXT, {"x-swaa-recipe": "full"}, max_tokens=24, ignore_eos=True)


def test_what_a_turn_tells(turn: Turn, tokenizer: Any) -> None:
    prompt_tokens = len(tokenizer(TEXT)["input_ids"])
    accepted, finish = turn.accepted, turn.finish
    assert accepted.request_id
    assert accepted.session_id == ""
    assert accepted.recipe.name == "full"
    assert accepted.reason == "asked for by x-swaa-recipe"
    assert (accepted.prompt_tokens, accepted.history_tokens) == (prompt_tokens, 0)
    assert accepted.objective.sla_class == "balanced"
    assert accepted.prediction.ttft_ms > 0
    assert accepted.prediction.tpot_ms > 0
    assert accepted.prediction.quality == 1.0
    assert accepted.prediction.computed_tokens == prompt_tokens

    assert finish.reason == pb.FINISH_REASON_LENGTH
    assert len(turn.tokens) == 24
    assert finish.usage == pb.Usage(
        prompt_tokens=prompt_tokens,
        history_tokens=0,
        restored_tokens=0,
        computed_tokens=prompt_tokens,
        generated_tokens=24,
    )
    assert not finish.HasField("session")
    timings = finish.timings
    assert 0 < timings.ttft_ms < timings.total_ms
    assert timings.ttft_ms + 23 * timings.tpot_ms == pytest.approx(timings.total_ms, rel=0.3, abs=2000)
    memory = finish.kv_memory
    assert memory.full_attention_bytes == (prompt_tokens + 23) * KV_BYTES_PER_TOKEN
    assert memory.full_attention_bytes <= memory.resident_bytes <= memory.peak_bytes
    assert finish.sla_met == (not finish.sla_misses)


def test_progress_grows_to_the_end(service: Service) -> None:
    turn = run_turn(service, log_of(52), {"x-swaa-recipe": "sliding"}, max_tokens=1)
    steps = [(step.done_tokens, step.total_tokens, step.restored_tokens) for step in turn.prefill]
    total = turn.accepted.prompt_tokens
    assert total > 1024, "more than one step"
    assert len(steps) > 1
    assert [done for done, _, _ in steps] == sorted({done for done, _, _ in steps})
    assert steps[-1] == (total, total, 0)
    assert {step[1:] for step in steps} == {(total, 0)}
    memory = turn.finish.kv_memory
    assert memory.resident_bytes < memory.full_attention_bytes / 2, "what cannot be seen is freed"


def test_the_text_is_that_of_the_tokens(turn: Turn, tokenizer: Any) -> None:
    assert turn.text == tokenizer.decode(turn.token_ids, skip_special_tokens=True)
    assert len(turn.text) > 24


def test_token_ids_give_what_their_text_gives(service: Service, turn: Turn, tokenizer: Any) -> None:
    prompt = pb.Prompt(token_ids=tokenizer(TEXT)["input_ids"])
    again = run_turn(service, prompt, {"x-swaa-recipe": "full"}, max_tokens=24, ignore_eos=True)
    assert again.token_ids == turn.token_ids
    assert again.text == turn.text


def test_messages_give_what_the_template_gives(service: Service, tokenizer: Any) -> None:
    chat = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Name a colour."}]
    by_messages = run_turn(service, pb.Prompt(messages=[pb.ChatMessage(**m) for m in chat]), max_tokens=8)
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    by_text = run_turn(service, rendered, max_tokens=8)
    assert by_messages.token_ids == by_text.token_ids
    assert by_messages.accepted.prompt_tokens == by_text.accepted.prompt_tokens


def test_the_end_of_sequence_ends_it_and_is_no_text(service: Service) -> None:
    chat = pb.Prompt(messages=[pb.ChatMessage(role="user", content="Say only the word yes.")])
    turn = run_turn(service, chat, max_tokens=100)
    assert turn.finish.reason == pb.FINISH_REASON_STOP
    assert turn.token_ids[-1] == 2
    assert turn.finish.usage.generated_tokens == len(turn.tokens) < 100
    assert "<|im_end|>" not in turn.text
    longer = run_turn(service, chat, max_tokens=len(turn.tokens) + 5, ignore_eos=True)
    assert longer.finish.reason == pb.FINISH_REASON_LENGTH
    assert longer.token_ids[: len(turn.tokens)] == turn.token_ids
    assert len(longer.tokens) == len(turn.tokens) + 5


def test_greedy_is_repeatable_and_max_tokens_cuts(service: Service, turn: Turn) -> None:
    for max_tokens in (1, 5):
        again = run_turn(service, TEXT, {"x-swaa-recipe": "full"}, max_tokens=max_tokens, ignore_eos=True)
        assert again.token_ids == turn.token_ids[:max_tokens]


def test_a_seed_repeats_what_it_drew(service: Service, turn: Turn) -> None:
    def draw(seed: int | None) -> list[int]:
        options: dict[str, Any] = {} if seed is None else {"seed": seed}
        return run_turn(service, "The ship", max_tokens=8, temperature=1.5, ignore_eos=True, **options).token_ids

    one = draw(1)
    assert draw(1) == one
    others = [draw(2), draw(None), draw(None)]
    assert one not in others
    assert others[1] != others[2]


def test_top_k_1_is_greedy_at_any_temperature(service: Service, turn: Turn) -> None:
    options: dict[str, Any] = {"temperature": 2.0, "top_k": 1, "seed": 3, "max_tokens": 8, "ignore_eos": True}
    assert run_turn(service, TEXT, {"x-swaa-recipe": "full"}, **options).token_ids == turn.token_ids[:8]


@pytest.mark.parametrize("temperature", [1e-3, 1e-12, 1e-42, 5e-324])
def test_a_temperature_next_to_nothing_is_greedy_and_kills_nobody(
    service: Service, turn: Turn, temperature: float
) -> None:
    again = run_turn(
        service, TEXT, {"x-swaa-recipe": "full"}, max_tokens=4, temperature=temperature, seed=1, ignore_eos=True
    )
    assert again.token_ids == turn.token_ids[:4]


def test_a_stop_string_ends_the_text_before_it(service: Service, turn: Turn) -> None:
    words = turn.text.split()
    stop = f"{words[2]} {words[3]}"
    cut = turn.text.index(stop)
    stopped = run_turn(
        service, TEXT, {"x-swaa-recipe": "full"}, max_tokens=24, ignore_eos=True, stop=["never said", stop]
    )
    assert stopped.finish.reason == pb.FINISH_REASON_STOP
    assert stopped.text == turn.text[:cut]
    assert len(stopped.tokens) < 24


def test_logprobs_are_those_of_the_model(service: Service, turn: Turn) -> None:
    again = run_turn(service, TEXT, {"x-swaa-recipe": "full"}, max_tokens=4, logprobs=3, ignore_eos=True)
    assert again.token_ids == turn.token_ids[:4]
    for token in again.tokens:
        top = list(token.logprob.top_logprobs)
        assert len(token.logprob.top_token_ids) == len(top) == 3
        assert top == sorted(top, reverse=True)
        assert token.logprob.top_token_ids[0] == token.token_id, "greedy picks the likeliest"
        assert token.logprob.logprob == pytest.approx(top[0])
        assert top[0] < 0
    own = run_turn(service, TEXT, {"x-swaa-recipe": "full"}, max_tokens=1, logprobs=0)
    assert own.tokens[0].HasField("logprob")
    assert not own.tokens[0].logprob.top_token_ids
    assert not turn.tokens[0].HasField("logprob")


def test_requests_at_once_get_what_each_gets_alone(service: Service) -> None:
    recipes = ("full", "interleaved", "sliding", recipes_with_a_tail(service)[-1])
    # The last three exceed a window of 256 tokens.
    prompts = [log_of(lines, seed=lines * 100) + QUESTION for lines in (6, 14, 16, 18)]

    def run(index: int) -> Turn:
        headers = {"x-swaa-recipe": recipes[index]}
        return run_turn(service, prompts[index], headers, max_tokens=10, ignore_eos=True, logprobs=3)

    alone = [run(index) for index in range(len(recipes))]
    with ThreadPoolExecutor(len(recipes)) as pool:
        for index, together in enumerate(pool.map(run, range(len(recipes)))):
            assert together.accepted.recipe.name == recipes[index]
            assert_same_but_for_ties(alone[index], together)
    assert len({tuple(turn.token_ids) for turn in alone}) > 1


def test_the_class_decides_what_counts_as_met(service: Service) -> None:
    met = run_turn(service, "The ship", {"x-slo-ttft-ms": "1e9", "x-slo-tpot-ms": "1e9", "x-swaa-min-quality": "0"})
    assert met.accepted.predicted_to_meet
    assert met.accepted.reason.startswith("best quality of those predicted to meet the SLA")
    assert met.finish.sla_met
    assert list(met.finish.sla_misses) == []
    missed = run_turn(service, "The ship", {"x-slo-ttft-ms": "0.001"})
    assert not missed.accepted.predicted_to_meet
    assert "none is predicted to meet the SLA" in missed.accepted.reason
    assert not missed.finish.sla_met
    assert missed.finish.sla_misses[0].startswith("ttft ")
    assert missed.finish.sla_misses[0].endswith("is above 0 ms")


def test_headers_that_hold_are_echoed(service: Service) -> None:
    headers = {
        "x-swaa-sla": "interactive",
        "x-slo-ttft-ms": "123456",
        "x-slo-tpot-ms": "654321",
        "x-swaa-min-quality": "0.125",
        "x-swaa-priority": "-7",
        "x-swaa-strict": "true",
    }
    turn = run_turn(service, "The ship", headers, max_tokens=1)
    assert turn.accepted.objective == pb.Objective(
        sla_class="interactive", ttft_ms=123456, tpot_ms=654321, min_quality=0.125, priority=-7, strict=True
    )


def upload(*parts: pb.GenerateUploadRequest, **sampling: Any) -> Iterator[pb.GenerateUploadRequest]:
    sampling = {"max_tokens": 8, "ignore_eos": True, **sampling}
    yield pb.GenerateUploadRequest(request=pb.GenerateRequest(sampling=pb.Sampling(**sampling)))
    yield from parts


def test_an_upload_in_pieces_gives_what_one_message_gives(service: Service, turn: Turn, tokenizer: Any) -> None:
    data = TEXT.encode()
    pieces = [pb.GenerateUploadRequest(text=data[at : at + 7]) for at in range(0, len(data), 7)]
    headers = (("x-swaa-recipe", "full"),)
    by_text = Turn(tuple(service.stub.GenerateUpload(upload(*pieces), metadata=headers, timeout=120)))
    assert by_text.token_ids == turn.token_ids[:8]
    ids = tokenizer(TEXT)["input_ids"]
    halves = [pb.GenerateUploadRequest(token_ids=pb.TokenIds(token_ids=half)) for half in (ids[:50], ids[50:])]
    by_ids = Turn(tuple(service.stub.GenerateUpload(upload(*halves), metadata=headers, timeout=120)))
    assert by_ids.token_ids == turn.token_ids[:8]


def test_characters_cut_between_pieces_arrive_whole(service: Service) -> None:
    text = "\N{EURO SIGN}\N{SNOWMAN}\N{LATIN SMALL LETTER E WITH ACUTE} costs"
    whole = run_turn(service, text, max_tokens=4)
    pieces = [pb.GenerateUploadRequest(text=bytes([byte])) for byte in text.encode()]
    cut = Turn(tuple(service.stub.GenerateUpload(upload(*pieces, max_tokens=4, ignore_eos=False), timeout=120)))
    assert cut.accepted.prompt_tokens == whole.accepted.prompt_tokens
    assert cut.token_ids == whole.token_ids


def test_a_stream_that_is_read_slowly_loses_nothing(tiny: Service) -> None:
    call = open_turn(tiny, "The ship", max_tokens=100, ignore_eos=True)
    events = []
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(run_turn, tiny, "The harbour", max_tokens=2)
        assert len(other.result().tokens) == 2, "nobody waits for the reader"
    events = list(call)
    assert len(Turn(tuple(events)).tokens) == 100
