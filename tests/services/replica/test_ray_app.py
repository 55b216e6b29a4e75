"""From the arguments in Serve's configuration to a deployment. That replicas run is shown in tests/cluster."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from ray.serve.deployment import Deployment

from services.replica.ray_app import CLOSE_S, build
from services.replica.ray_router import SessionRouter
from services.replica.ray_scaling import WaitPolicy
from swaa_runtime.errors import InvalidRequest


def deployment_of(**args: str) -> Deployment:
    deployment: Deployment = build(args)._bound_deployment
    return deployment


def test_settings_go_to_the_replica_and_options_to_serve() -> None:
    deployment = deployment_of(name="coder", num_gpus="1", model="/models/coder", drain_s="90", min_replicas="3")
    assert deployment.name == "coder"
    assert deployment.init_args == ({"model": "/models/coder", "drain_s": "90"},)
    assert deployment.ray_actor_options is not None
    assert deployment.ray_actor_options["num_gpus"] == 1.0
    assert deployment.num_replicas == 3
    config = deployment._deployment_config
    assert config.autoscaling_config is None
    assert config.graceful_shutdown_timeout_s == 90 + CLOSE_S
    assert config.request_router_config.get_request_router_class() is SessionRouter


def test_a_replica_takes_as_many_leases_as_its_engine_runs_turns_unless_told_otherwise() -> None:
    assert deployment_of(max_running="7").max_ongoing_requests == 7
    assert deployment_of(max_running="7", max_leases="9").max_ongoing_requests == 9


def test_with_a_most_of_replicas_their_number_follows_the_wait() -> None:
    deployment = deployment_of(
        min_replicas="1", max_replicas="4", target_wait_s="3", downscale_delay_s="60", max_leases="8"
    )
    scaling = deployment._deployment_config.autoscaling_config
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas, scaling.downscale_delay_s) == (1, 4, 60.0)
    assert scaling.policy.get_policy() is WaitPolicy
    assert scaling.policy.policy_kwargs == {"target_wait_s": 3.0, "max_leases": 8}


def test_the_environment_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWAA_MAX_RUNNING", "5")
    assert deployment_of().max_ongoing_requests == 5
    monkeypatch.setenv("SWAA_MAX_RUNING", "5")
    with pytest.raises(InvalidRequest, match="SWAA_MAX_RUNING"):
        build({})


@pytest.mark.parametrize(
    ("args", "num_gpus"),
    [
        ({}, 0.0),
        ({"device": "cuda"}, 1.0),
        ({"device": "cuda", "num_gpus": "0.5"}, 0.5),
        ({"device": "cuda", "tensor_parallel": "2"}, 2.0),
        ({"device": "cuda", "tensor_parallel": "2", "num_gpus": "2"}, 2.0),
        ({"device": "cpu", "tensor_parallel": "2"}, 0.0),
    ],
)
def test_a_replica_gets_the_gpus_that_compute_its_model(args: dict[str, str], num_gpus: float) -> None:
    options = deployment_of(**args).ray_actor_options
    assert options is not None
    assert options["num_gpus"] == num_gpus


def test_fewer_gpus_than_compute_the_model_together_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="must be 2, as tensor_parallel is"):
        build({"device": "cuda", "tensor_parallel": "2", "num_gpus": "1"})


@pytest.mark.parametrize("args", [{"modle": "x"}, {"num_gpus": "-1"}, {"kv_memory_mib": "much"}])
def test_what_does_not_exist_or_is_out_of_bounds_is_refused(args: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        build(args)
