"""What is generated is current, complete and true."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route
from transformers import AutoConfig

from docs.generate import api, limits, memory, metrics, pages, pictures, settings
from docs.generate.markdown import fill, sections, table
from docs.generate.proto import listed, paragraph, read_proto
from services.config import CLIENT_VARIABLES, ServeConfig
from services.cost import kv_tokens
from services.gateway import limits as shared_limits
from services.gateway.errors import STATUS_CODES
from services.gateway.sla import HEADERS
from swaa_runtime.shape import ModelShape
from swaa_runtime.visibility import Turn, visible
from tests.services.sessions.test_redis_deployments import ACL, CLUSTER_ACL

REPOSITORY = Path(__file__).parents[2]
OPERATING = (pages.FOLDER / "operating.md").read_text(encoding="utf-8")


def test_what_is_committed_is_current() -> None:
    assert pages.stale(pages.pages()) == [], "run make docs"


def test_a_stale_file_and_one_that_nobody_makes_are_named() -> None:
    made = pages.pages()
    del made["pictures/full.svg"]
    assert pages.stale({**made, "api.md": "old"}) == ["api.md", "pictures/full.svg"]


def test_every_limit_that_both_wires_share_is_in_the_table() -> None:
    source = inspect.getsource(limits)
    names = [name for name in vars(shared_limits) if name.isupper() and not name.endswith("_OPTIONS")]
    assert [name for name in names if f"limits.{name}" not in source] == []


def test_parts_of_pages_are_replaced_and_nothing_else() -> None:
    page = "a\n<!-- generated: x -->\nold\n<!-- end -->\nb\n"
    assert sections(page) == ["x"]
    assert fill(page, {"x": "new"}) == "a\n<!-- generated: x -->\n\nnew\n\n<!-- end -->\nb\n"
    assert fill(fill(page, {"x": "new"}), {"x": "new"}) == fill(page, {"x": "new"})
    with pytest.raises(KeyError):
        fill(page, {})


def test_a_table_keeps_its_columns() -> None:
    assert table(["a", "b"], [["1|2", "x\ny"]]) == "| a | b |\n| --- | --- |\n| 1\\|2 | x y |\n"
    with pytest.raises(ValueError, match="a row has 1 cells"):
        table(["a", "b"], [["1"]])


def test_the_reference_has_every_header_status_message_and_setting() -> None:
    page = api.api_page()
    proto = read_proto()
    for name in (*HEADERS, *(status.name for status in STATUS_CODES.values())):
        assert f"`{name}`" in page
    for message in proto.file.message_type:
        assert message.name in page
        for field in message.field:
            assert f"`{field.name}`" in page
    for name in ServeConfig.model_fields:
        assert f"`SWAA_{name.upper()}`" in settings.settings_table()


def test_lists_in_the_comment_are_read_with_their_later_lines() -> None:
    head = " Things (of two):\n   one, two  first\n             and more\n   three  other\n Then.\n goes on\n\n Else."
    assert listed(head, "Things") == {"one, two": "first and more", "three": "other"}
    assert paragraph(head, "Then") == "Then. goes on"
    with pytest.raises(ValueError, match="no line"):
        paragraph(head, "Nothing")


def test_every_link_of_the_pages_leads_somewhere() -> None:
    for page in pages.FOLDER.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            found = page if not path else (page.parent / path).resolve()
            assert found.exists(), f"{page.name}: {target}"
            if anchor:
                titles = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], target


def test_routes_are_told_by_what_answers_them() -> None:
    told = [(route.path, route.methods) for route in api.routes()]
    assert len(told) > 10
    assert all(isinstance(route, Route) and route.endpoint.__doc__ for route in api.routes())


@given(st.sampled_from(sorted(memory.SHAPES)), st.data(), st.integers(10_000, 1_000_000), st.booleans())
def test_kv_need_is_what_the_planner_counts(model: str, data: st.DataObject, num_tokens: int, continues: bool) -> None:
    recipes = CATALOGS[model].recipes
    rules = recipes[data.draw(st.sampled_from(sorted(recipes)))].rules
    shape = memory.SHAPES[model]
    need = memory.kv_need(shape, rules, continues)
    assert need.at(num_tokens) == kv_tokens(rules, num_tokens, continues) * shape.bytes_per_token_layer


CATALOGS = memory.catalogs()


def test_kv_of_known_models() -> None:
    full = {model: memory.kv_need(memory.SHAPES[model], CATALOGS[model].recipes["full"].rules) for model in CATALOGS}
    assert full["smollm2"] == memory.KVNeed(23_040, 0)
    assert full["qwen3-4b"] == memory.KVNeed(2 * 36 * 8 * 128 * 2, 0)


@pytest.mark.model
def test_the_default_models_shape(default_model_folder: Path) -> None:
    config = AutoConfig.from_pretrained(default_model_folder)
    heads = config.num_attention_heads
    head_dim = config.hidden_size // heads
    sizes = (config.num_hidden_layers, heads, config.num_key_value_heads, head_dim)
    expected = ModelShape(*sizes, config.vocab_size, config.max_position_embeddings, "bfloat16")
    assert memory.SHAPES["smollm2"] == expected


@pytest.mark.parametrize("name", pictures.KINDS)
def test_attention_shares_are_counted_pair_by_pair(name: str) -> None:
    rules = pictures.KINDS[name].recipe.resolve(pictures.NUM_LAYERS)
    turns = (Turn(0, 18),)
    pairs = [(query, key) for query in range(18) for key in range(query + 1)]
    seen = sum(visible(rule, turns, *pair) for rule in rules for pair in pairs)
    assert memory.attention_share(rules, 18) == pytest.approx(seen / (len(rules) * len(pairs)))


@pytest.mark.parametrize("name", pictures.KINDS)
def test_pictures_colour_what_the_rule_says(name: str) -> None:
    for rule in pictures.KINDS[name].recipe.resolve(pictures.NUM_LAYERS):
        for query in range(pictures.NUM_TOKENS):
            for key in range(query + 1):
                hidden = pictures.why_seen(rule, query, key) == "hidden"
                assert hidden != visible(rule, pictures.TURNS, query, key)
        last = pictures.NUM_TOKENS - 1
        for position in range(last):
            if visible(rule, pictures.TURNS, last, position):
                assert pictures.why_kept(rule, position) != "hidden", "what the next token sees is kept"


def test_recipes_show_every_picture_and_no_other() -> None:
    page = (pages.FOLDER / "recipes.md").read_text(encoding="utf-8")
    assert re.findall(r"pictures/([\w-]+)\.svg", page) == list(pictures.KINDS)


def failures() -> list[list[str]]:
    part = OPERATING.partition("## What failures look like")[2].partition("## Upgrading")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def test_failures_name_statuses_log_lines_and_metrics_that_exist() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "services").rglob("*.py"))
    known = set(re.findall(r"`(swaa_\w+)`", metrics.metrics_table()))
    statuses = {status.name for status in STATUS_CODES.values()} | {"INTERNAL"}
    assert len(failures()) > 10
    for what, clients, log, metric, _ in failures():
        assert set(re.findall(r"`((?!SWAA_)[A-Z_]+)`", clients)) <= statuses, what
        for quoted in re.findall(r"`([^`]+)`", log):
            assert quoted in sources, f"{what}: nothing logs {quoted!r}"
        assert set(re.findall(r"`(\w+)`", metric)) <= known, what


def test_every_setting_and_metric_that_is_named_exists() -> None:
    named = set(re.findall(r"\bSWAA_[A-Z_]+\b", OPERATING))
    assert named <= {f"SWAA_{name.upper()}" for name in ServeConfig.model_fields} | CLIENT_VARIABLES
    known = set(re.findall(r"`(swaa_\w+)`", metrics.metrics_table()))
    assert set(re.findall(r"\bswaa_\w+", OPERATING)) <= known


def test_the_acl_is_the_tested_one() -> None:
    told = " ".join(OPERATING.partition("ACL SETUSER swaa on >password ")[2].partition("```")[0].split())
    assert told == ACL
    assert f"`{CLUSTER_ACL}`" in OPERATING
