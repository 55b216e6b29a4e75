"""What API server, KubeRay, Ray Serve or the service would refuse or silently drop is found."""

from __future__ import annotations

import re

import pytest

from tests.k8s import schemas
from tests.k8s.broken import Case, checks_of, cluster, environment, one, problems, serve
from tests.k8s.manifests import GATEWAY, HEAD, WORKER, pod
from tests.k8s.schemas import check_ray_version, check_schemas, check_serve_config, check_settings

pytestmark = pytest.mark.k8s

CASES: dict[str, Case] = {
    "a field that Deployment does not have": (
        check_schemas,
        lambda m: one(m, "Deployment", GATEWAY)["spec"].update(replica=2),
        r"Deployment swaa-gateway: Kubernetes 1\.37: .*'replica' was unexpected",
    ),
    "a field that RayService does not have": (
        check_schemas,
        lambda m: cluster(m)["headGroupSpec"].update(rayStartParam={}),
        r"RayService swaa-replica: \$\.spec\.rayClusterConfig\.headGroupSpec: .*'rayStartParam' was unexpected",
    ),
    "a RayService field of another type": (
        check_schemas,
        lambda m: cluster(m)["workerGroupSpecs"][0].update(replicas="two"),
        r"replicas: 'two' is not of type 'integer'",
    ),
    "a field that ServiceMonitor does not have": (
        check_schemas,
        lambda m: one(m, "ServiceMonitor", "swaa-replica")["spec"].update(endpoint=[]),
        r"ServiceMonitor swaa-replica: .*'endpoint' was unexpected",
    ),
    "a field that PrometheusRule does not have": (
        check_schemas,
        lambda m: one(m, "PrometheusRule", "swaa")["spec"]["groups"][0]["rules"][0].update(until="5m"),
        r"PrometheusRule swaa: .*'until' was unexpected",
    ),
    "a Serve option that Ray does not know": (
        check_serve_config,
        serve(lambda config, deployment: deployment.update(max_ongoing_request=1)),
        r"'max_ongoing_request' is unknown",
    ),
    "a Serve option out of bounds": (
        check_serve_config,
        serve(lambda config, deployment: deployment.update(num_replicas=0, autoscaling_config=None)),
        r"(?s)serveConfigV2: .*num_replicas.*greater than 0",
    ),
    "a servicer that does not exist": (
        check_serve_config,
        serve(
            lambda config, deployment: config["grpc_options"].update(
                grpc_servicer_functions=["services.pb.swaa.v1.replica_pb2_grpc.add_RouterServicer_to_server"]
            )
        ),
        r"add_RouterServicer_to_server does not exist",
    ),
    "a setting that does not exist": (
        check_settings,
        environment(GATEWAY, "SWAA_REPLICA", "x:1"),
        r"swaa-gateway: there is no setting replica",
    ),
    "a setting out of bounds": (
        check_settings,
        environment(WORKER, "SWAA_REPLICA_PORT", "70000"),
        r"(?s)swaa-replica-replicas: .*replica_port",
    ),
    "an argument out of bounds": (
        check_settings,
        serve(lambda config, deployment: config["applications"][0]["args"].update(kv_memory_mib="0")),
        r"(?s)args of swaa: .*kv_memory_mib",
    ),
    "variables that Kubernetes makes of Services": (
        check_settings,
        lambda m: pod(m, HEAD).spec.pop("enableServiceLinks"),
        r"swaa-replica-head: Kubernetes adds variables",
    ),
    "another Ray than the image's": (
        check_ray_version,
        lambda m: cluster(m).update(rayVersion="2.9.0"),
        r"rayVersion is 2\.9\.0",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_broken_manifest_is_found(case: Case) -> None:
    check, change, problem = case
    found = problems(check, change)
    assert any(re.search(problem, text) for text in found), found


def test_every_check_has_a_case() -> None:
    assert {check for check, _, _ in CASES.values()} == set(checks_of(schemas))
