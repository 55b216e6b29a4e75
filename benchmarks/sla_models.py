"""The models that `simulate_sla` and `simulate_prediction` play, and how long a request keeps one of them busy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from benchmarks.shapes import SHAPES
from benchmarks.sla_policies import Policy, Setup, request_ms
from benchmarks.sla_simulation import Machine, SimulatedService
from benchmarks.workload import TINY_LAYERS
from services.config import ServeConfig
from services.cost import CostProfile, count_layers
from services.gateway.catalog import Catalog
from services.gateway.catalog_file import ServedModel, load_catalog
from services.load.trace import TraceRequest
from services.replica.kv_memory import CPU_KV_MIB
from swaa_runtime.config import EngineConfig
from swaa_runtime.errors import InvalidRequest
from swaa_runtime.shape import ModelShape

CATALOGS = Path(str(files("services.gateway").joinpath("data", "catalogs")))
DATA = Path(__file__).parent / "data"
BLOCK_SIZE_TOKENS = 256
"""Larger than a service's, as every block takes time to hand out; memory is the same."""


SATURATING = 60
"""So many requests at once: the last answers, beside which no prompt runs, are few of all."""


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model as planner and KV memory know it. `profile_file`: in `DATA`, if its costs are known."""

    catalog_file: str
    shape: ModelShape
    profile_file: str = ""

    @property
    def catalog(self) -> Catalog:
        """Its recipes, as they come with the service."""
        return load_catalog(CATALOGS / self.catalog_file, ServedModel(self.shape.num_layers))[0]

    @property
    def profile(self) -> CostProfile:
        """What its steps cost where that is known."""
        return load_profile(DATA / self.profile_file)


MODELS = {
    "default": SimulatedModel(
        "smollm2.yaml", ModelShape(30, 9, 3, 64, 49152, 8192, "bfloat16"), "cost_smollm2_cpu.json"
    ),
    "tiny": SimulatedModel("smollm2.yaml", ModelShape(TINY_LAYERS, 2, 2, 16, 49152, 2048, "float32")),
    "qwen3-4b": SimulatedModel(
        "qwen3-4b.yaml", ModelShape(36, 32, 8, 128, 151936, 262144, "bfloat16"), "cost_qwen3_4b_h100.json"
    ),
}

PRICED = sorted(name for name, model in MODELS.items() if model.profile_file)
"""Those that can be simulated without a service."""


def load_profile(path: Path) -> CostProfile:
    """A profile as `swaa calibrate` keeps it."""
    return CostProfile.from_mapping(json.loads(path.read_text(encoding="utf-8")))


def find_profile(folder: Path, source: str) -> CostProfile:
    """The one that says so, of all in a folder. Raises LookupError if there is none."""
    for file in folder.glob("cost-*.json"):
        with contextlib.suppress(InvalidRequest):  # of another version
            if (profile := load_profile(file)).source == source:
                return profile
    raise LookupError(f"no cost profile of {source!r} in {folder}")


def engine_config(name: str, profile: CostProfile, policy: Policy) -> EngineConfig:
    """A service's own, with the settings that `bench_sla` gives it."""
    shape, settings = MODELS[name].shape, SHAPES[name].settings
    kv_bytes = int(settings.get("kv_memory_mib", CPU_KV_MIB)) << 20
    return EngineConfig(
        num_blocks=1 + kv_bytes // (shape.bytes_per_token_layer * BLOCK_SIZE_TOKENS),
        max_model_tokens=shape.max_model_tokens,
        block_size_tokens=BLOCK_SIZE_TOKENS,
        max_step_tokens=profile.max_step_tokens,
        policy=policy.scheduling,
        max_swapped_bytes=int(settings.get("swap_memory_mib", ServeConfig.model_fields["swap_memory_mib"].default))
        << 20,
    )


def simulated_service(name: str, catalog: Catalog, policy: Policy, machine: Machine) -> SimulatedService:
    """A service of that model on a machine, which starts from the prices that the machine has but for its bias."""
    profile = machine.profile
    return SimulatedService(catalog, MODELS[name].shape, engine_config(name, profile, policy), profile, machine)


def saturated(name: str, catalog: Catalog, setup: Setup, requests: Sequence[TraceRequest]) -> Setup:
    """The setup with what a request takes where many wait, as that is what fills a replica (see `Setup.crowding`).

    In virtual time the first of `requests` come at once, under the reference, and steps take what the profile says.
    """
    policy, profile = Policy("saturated", recipe=setup.reference), setup.profile
    first = requests[:SATURATING]
    service = simulated_service(name, catalog, policy, Machine(profile))
    results = service.run([replace(each, arrival_ms=0.0) for each in policy.asked(first)])
    took_ms = max(result.total_ms for result in results)
    layers = count_layers(catalog.recipes[setup.reference].rules)
    return replace(setup, crowding=took_ms / sum(request_ms(profile, layers, each) for each in first))
