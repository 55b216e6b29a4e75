"""`swaa load` against a service of a tiny model, whose catalogue changes while it runs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.pb.swaa.v1 import long_context_pb2 as pb

from .harness import Service, run_swaa

pytestmark = [pytest.mark.model, pytest.mark.redis]


def test_a_load_is_sent_measured_written_and_can_be_replayed(tiny: Service, tmp_path: Path) -> None:
    trace, results, summary = (tmp_path / name for name in ("trace.jsonl", "results.jsonl", "summary.json"))
    options = ["--rate", "10", "--duration-s", "2", "--lengths", "50:0.5,100-200:0.5", "--max-tokens", "2-4"]
    options += ["--sessions-share", "0.4", "--save-trace", str(trace), "--results", str(results)]
    ran = run_swaa("load", "-s", tiny.address, *options, "--plots", str(tmp_path / "plots"))
    assert ran.returncode == 0, ran.stderr.decode()
    assert "SLA met" in ran.stdout.decode()
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    requests = [json.loads(line) for line in trace.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(requests) > 5
    assert {line["status"] for line in lines} == {"OK"}
    assert all(line["recipe"] and line["ttft_ms"] > 0 and line["predicted_ttft_ms"] > 0 for line in lines)
    for line, request in zip(lines, requests, strict=True):
        assert line["generated_tokens"] == request["max_tokens"]
        assert line["prompt_tokens"] == pytest.approx(request["prompt_tokens"], rel=0.3, abs=10)
    assert any(line["history_tokens"] for line in lines)
    assert len(list((tmp_path / "plots").glob("*.png"))) == 4

    ran = run_swaa("load", "-s", tiny.address, "--trace", str(trace), "--summary", str(summary))
    assert ran.returncode == 0, ran.stderr.decode()
    assert json.loads(summary.read_text(encoding="utf-8"))["total"]["num_requests"] == len(requests)


def test_a_changed_catalogue_is_taken_over_and_a_bad_one_is_shown(tiny: Service, tiny_catalog: Path) -> None:
    catalog_text = tiny_catalog.read_text(encoding="utf-8")

    def listed() -> pb.ListRecipesResponse:
        answer: pb.ListRecipesResponse = tiny.stub.ListRecipes(pb.ListRecipesRequest(), timeout=120)
        return answer

    first = listed()
    assert (first.catalog_source, first.catalog_error) == (str(tiny_catalog), "")
    _replace(tiny_catalog, catalog_text.replace("ttft_ms: 15000", "ttft_ms: 16000"))
    changed = _until(listed, lambda answer: answer.catalog_loaded_at_s > first.catalog_loaded_at_s)
    assert {sla.name: sla.ttft_ms for sla in changed.sla_classes}["balanced"] == 16000
    _replace(tiny_catalog, catalog_text.replace("ttft_ms: 15000", "ttft_ms: soon"))
    bad = _until(listed, lambda answer: bool(answer.catalog_error))
    assert "sla_classes.1.ttft_ms is 'soon'" in bad.catalog_error
    assert bad.sla_classes == changed.sla_classes
    assert "the catalogue that is in use is an old one" in run_swaa("recipes", "-s", tiny.address).stdout.decode()
    _replace(tiny_catalog, catalog_text)
    _until(listed, lambda answer: not answer.catalog_error)


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def _until(
    look: Callable[[], pb.ListRecipesResponse], seen: Callable[[pb.ListRecipesResponse], bool]
) -> pb.ListRecipesResponse:
    """What is seen once it is; the service looks at its file once a second."""
    until_s = time.monotonic() + 60
    while not seen(answer := look()):
        assert time.monotonic() < until_s
        time.sleep(0.1)
    return answer
