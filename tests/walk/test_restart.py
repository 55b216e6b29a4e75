"""A service that is stopped, killed and started again: its sessions go on, those of an adapter as well."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import grpc
import pytest
from transformers import AutoTokenizer

from services.gateway.catalog_file import catalog_path
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.quality.tasks.needles import Needles
from services.quality.tasks.sample import PromptBuilder

from .harness import (
    QUESTION,
    Service,
    fork_session,
    get_session,
    log_of,
    open_turn,
    read_until,
    refused,
    run_turn,
    session,
    wait_until,
)

pytestmark = [pytest.mark.model, pytest.mark.redis]

DOCUMENT = log_of(5) + QUESTION
MORE = "\nIt left again with"
TUNED = "tuned-512"
CATALOG = catalog_path(None, "smollm2").with_name("smollm2-tuned.yaml")


@pytest.fixture(scope="module")
def prompts(default_model_folder: Path) -> PromptBuilder:
    tokenizer: Any = AutoTokenizer.from_pretrained(default_model_folder)
    return PromptBuilder(tokenizer)


def test_sessions_outlive_their_service(walk_folder: Path, prompts: PromptBuilder) -> None:
    """Of a recipe, and of one with the shipped adapter: in one test, as each start takes seconds."""
    folder = walk_folder / "restart"
    folder.mkdir()
    sample = Needles("multi_key", num_keys=4).sample(prompts, 1000, random.Random("walk"))
    question = pb.Prompt(messages=[pb.ChatMessage(role="user", content="Say the special magic number again.")])
    service = Service(folder, catalog=str(CATALOG))
    with service:
        one = run_turn(service, DOCUMENT, session("new")).session_id
        two, three = fork_session(service, one), fork_session(service, one)
        expected = run_turn(service, MORE, session(one))
        prompt = pb.Prompt(token_ids=sample.token_ids)
        tuned = run_turn(service, prompt, session("new", TUNED), max_tokens=sample.max_new_tokens)
        assert tuned.accepted.recipe.adapter.startswith("sliding-512@")
        assert sample.score(tuned.text) == 1.0
        assert run_turn(service, question, session(tuned.session_id, TUNED)).finish.session.history == "hot"
        assert len(service.redis_processes()) >= 1
        assert service.stop() == 0
        assert wait_until(lambda: not service.redis_processes()), "SIGTERM leaves no Redis behind"

        service.start()
        assert get_session(service, two).num_turns == 1
        stopped = run_turn(service, MORE, session(two))
        assert stopped.finish.session.history == "restored"
        assert stopped.finish.usage == expected.finish.usage
        assert stopped.token_ids == expected.token_ids
        again = run_turn(service, question, session(tuned.session_id, TUNED))
        assert again.finish.session.saved
        assert again.finish.usage.history_tokens > len(sample.token_ids)
        running = open_turn(service, MORE, session(two), max_tokens=500, ignore_eos=True)
        read_until(running, "token")
        service.kill()
        with refused(grpc.StatusCode.UNAVAILABLE):
            list(running)
        assert wait_until(lambda: not service.redis_processes()), "nor does SIGKILL"

        service.start()
        killed = run_turn(service, MORE, session(three))
        assert killed.finish.session.history == "restored"
        assert killed.token_ids == expected.token_ids
        assert get_session(service, two).version == 2, "the turn that was cut off left the last good one"
        assert run_turn(service, MORE, session(fork_session(service, two))).finish.session.history == "restored"
