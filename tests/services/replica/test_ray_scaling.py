"""How many replicas are wanted for what is queued."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.serve.config import AutoscalingContext, AutoscalingPolicy

from services.replica.ray_scaling import PREDICTED_WAIT_S, WaitPolicy, replicas_wanted


@pytest.mark.parametrize(
    ("waits_s", "num_replicas", "held", "waiting", "wanted"),
    [
        ([], 1, 0, 0, 1),  # nothing known
        ([0, 0, 0], 3, 0, 0, 1),  # nothing to do
        ([2.0], 1, 1, 0, 1),  # just what one does in time
        ([2.1], 1, 1, 0, 2),
        ([9.0, 0, 0], 3, 1, 0, 5),  # one long prompt: the next ones would wait behind it
        ([0.1, 0.1], 2, 60, 0, 1),  # many short ones are little work
        ([0, 0], 2, 65, 0, 2),  # but answers that are generated need their places
        ([0, 0], 2, 0.4, 0, 1),
        ([0.5, 0.5], 2, 128, 1, 3),  # all places are taken and one waits
        ([0.5, 0.5], 2, 128, 0.9, 2),  # it waited for a moment only
        ([9.0], 1, 64, 5, 5),  # the longer wait decides
    ],
)
def test_replicas_wanted(waits_s: list[float], num_replicas: int, held: float, waiting: float, wanted: int) -> None:
    assert replicas_wanted(waits_s, num_replicas, held, waiting, target_wait_s=2.0, max_leases=64) == wanted


def context(**metrics: Any) -> AutoscalingContext:
    fields = {"current_num_replicas": 2, "total_running_requests": 3.0, "total_queued_requests": 0.0}
    return cast(AutoscalingContext, SimpleNamespace(**fields, aggregated_metrics=metrics))


def test_the_policy_is_what_serve_can_make_and_reads_what_replicas_say() -> None:
    policy = AutoscalingPolicy(  # type: ignore[no-untyped-call]
        policy_function=WaitPolicy, policy_kwargs={"target_wait_s": 2.0, "max_leases": 64}
    )
    made = policy.get_policy()(**policy.policy_kwargs)
    assert made(context(**{PREDICTED_WAIT_S: {"a": 3.0, "b": 4.0}})) == (4, {})
    assert made(context()) == (1, {}), "no replica has said anything yet"
