"""The shipped adapter through the whole service: headers, session, restart."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from services.gateway.catalog_file import catalog_path
from services.pb.swaa.v1 import long_context_pb2 as pb
from services.quality.tasks.needles import Needles
from services.quality.tasks.sample import PromptBuilder

from .harness import Service, run_turn

pytestmark = [pytest.mark.model, pytest.mark.redis]

RECIPE = "tuned-512"
CATALOG = catalog_path(None, "smollm2").with_name("smollm2-tuned.yaml")


@pytest.fixture(scope="module")
def prompts(default_model_folder: Path) -> PromptBuilder:
    tokenizer: Any = AutoTokenizer.from_pretrained(default_model_folder)
    return PromptBuilder(tokenizer)


def test_a_tuned_recipe_answers_and_its_session_goes_on_after_a_restart(
    walk_folder: Path, prompts: PromptBuilder
) -> None:
    folder = walk_folder / "tuned"
    folder.mkdir()
    sample = Needles("multi_key", num_keys=4).sample(prompts, 1000, random.Random("walk"))
    question = pb.Prompt(messages=[pb.ChatMessage(role="user", content="Say the special magic number again.")])
    with Service(folder, catalog=str(CATALOG)) as service:
        prompt, headers = pb.Prompt(token_ids=sample.token_ids), {"x-swaa-recipe": RECIPE, "x-swaa-session": "new"}
        first = run_turn(service, prompt, headers, max_tokens=sample.max_new_tokens)
        assert first.accepted.recipe.adapter.startswith("sliding-512@")
        assert sample.score(first.text) == 1.0
        headers = {"x-swaa-recipe": RECIPE, "x-swaa-session": first.session_id}
        assert run_turn(service, question, headers).finish.session.history == "hot"
        assert service.stop() == 0
    with Service(folder, catalog=str(CATALOG)) as service:
        again = run_turn(service, question, headers)
        assert again.finish.session.saved
        assert again.finish.usage.history_tokens > len(sample.token_ids)
