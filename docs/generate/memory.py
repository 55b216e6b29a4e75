"""What KV takes and attention costs, by recipe, for the models of the shipped catalogues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import services.gateway
from docs.generate.markdown import code, table
from services.cost import count_layers, kv_tokens
from services.gateway.catalog import Catalog
from services.gateway.catalog_file import ServedModel, load_catalog
from swaa_runtime.recipe import LayerRule
from swaa_runtime.shape import ModelShape
from swaa_runtime.visibility import Turn, attended_keys, keeps_everything

FOLDER = Path(services.gateway.__file__).parent / "data" / "catalogs"
SHAPES = {
    "smollm2": ModelShape(30, 9, 3, 64, 49152, 8192, "bfloat16"),
    "qwen3-4b": ModelShape(36, 32, 8, 128, 151936, 262144, "bfloat16"),
    "qwen3-30b-a3b": ModelShape(48, 32, 4, 128, 151936, 262144, "bfloat16"),
    "llama-3.1-8b": ModelShape(32, 32, 8, 128, 128256, 131072, "bfloat16"),
}
"""Of the models that the shipped catalogues are for, from their configurations."""

MIB = 1 << 20
LENGTHS_TOKENS = (8_000, 32_000, 128_000)
COST_LENGTHS_TOKENS = (2_000, 4_000, 8_000)


@dataclass(frozen=True, slots=True)
class KVNeed:
    """KV of one request, once its prompt is computed: `fixed_bytes + num_tokens * bytes_per_token`.

    Exact from the first token on that is past sinks and window; below it, less.
    """

    bytes_per_token: int
    fixed_bytes: int

    def at(self, num_tokens: int) -> int:
        """Bytes after so many tokens."""
        return self.fixed_bytes + num_tokens * self.bytes_per_token


def kv_need(shape: ModelShape, rules: Sequence[LayerRule], continues: bool = False) -> KVNeed:
    """What a recipe needs in a model. `continues`: of a session, whose next turn may look back."""
    far = 2**31
    per_token = sum(count for rule, count in count_layers(rules).items() if keeps_everything(rule, far, far, continues))
    fixed = kv_tokens(rules, far, continues) - per_token * far
    return KVNeed(per_token * shape.bytes_per_token_layer, fixed * shape.bytes_per_token_layer)


def attention_share(rules: Sequence[LayerRule], num_tokens: int) -> float:
    """Pairs of query and key that a prompt of so many tokens attends to, beside full attention's."""
    turns = (Turn(0, num_tokens),)
    full = len(rules) * attended_keys(LayerRule(), turns, 0, num_tokens)
    return sum(attended_keys(rule, turns, 0, num_tokens) for rule in rules) / full


def catalogs() -> dict[str, Catalog]:
    """The shipped ones, by model."""
    served = {name: ServedModel(shape.num_layers) for name, shape in SHAPES.items()}
    return {name: load_catalog(FOLDER / f"{name}.yaml", model)[0] for name, model in served.items()}


def memory_table() -> str:
    """KV bytes by model, recipe and length."""
    rows = []
    for model, catalog in catalogs().items():
        shape = SHAPES[model]
        for named in catalog.recipes.values():
            need = kv_need(shape, named.rules)
            sizes = [
                f"{kv_tokens(named.rules, length, False) * shape.bytes_per_token_layer / MIB:,.0f}"
                if length <= shape.max_model_tokens
                else "-"
                for length in LENGTHS_TOKENS
            ]
            rows.append([model, code(named.name), f"{need.bytes_per_token:,}", f"{need.fixed_bytes:,}", *sizes])
    lengths = [f"MiB at {length:,}" for length in LENGTHS_TOKENS]
    return table(["model", "recipe", "bytes a token", "fixed bytes", *lengths], rows)


def cost_table() -> str:
    """Of the default catalogue: attention's work beside full attention's, and KV that stays."""
    catalog, shape = catalogs()["smollm2"], SHAPES["smollm2"]
    longest = COST_LENGTHS_TOKENS[-1]
    rows = []
    for named in catalog.recipes.values():
        shares = [f"{attention_share(named.rules, length):.0%}" for length in COST_LENGTHS_TOKENS]
        kept = kv_tokens(named.rules, longest, False) / (shape.num_layers * longest)
        recall = catalog.quality.recall[named.name][-1]
        rows.append([code(named.name), *shares, f"{kept:.0%}", f"{recall:.2f}"])
    header = [f"attention at {length:,}" for length in COST_LENGTHS_TOKENS]
    measured = catalog.quality.lengths_tokens[-1]
    return table(["recipe", *header, f"KV kept at {longest:,}", f"recall at {measured:,}"], rows)
