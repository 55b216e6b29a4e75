"""A catalogue file: YAML to a checked `Catalog`. Whatever is wrong is named by file, field, value and bound.

    recipes:      [{name, description, recipe: {window, ...}}]         the fields of `swaa_runtime.recipe.Recipe`
    sla_classes:  [{name, description, ttft_ms, tpot_ms, min_quality, priority}]
    tenants:      {name: {max_priority, sla_classes, quota: {...}}}    optional; "default" holds for all others
    quality_table: file                                                measured by this project, beside the YAML; or
    quality:      {source, lengths_tokens, scores: {recipe: [0..1]}}   figures that somebody else published

Recipes and quality stand in one file because they hold for one model, and each recipe must have been measured as it is.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from services.gateway.catalog import Catalog, NamedRecipe, QualityTable
from services.gateway.identity import TENANT_PATTERN
from services.gateway.sla import DEFAULT_SLA_CLASS, DEFAULT_TENANT, MAX_PRIORITY, SlaClass, TenantPolicy
from services.quota import Quota
from swaa_runtime.errors import InvalidRecipe, InvalidRequest, ModelNotSupported
from swaa_runtime.recipe import Recipe

FULL = "full"
"""The recipe that quality is relative to."""

Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
TenantName = Annotated[str, Field(pattern=TENANT_PATTERN)]
AtLeastOne = Annotated[int, Field(ge=1, le=2**53)]
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Scores = Annotated[list[Score], Field(min_length=1)]
Lengths = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
_Model = TypeVar("_Model", bound=BaseModel)
Priority = Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY)]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a catalogue must fit.

    Attributes:
        fingerprint: weights and dtype, as quality tables name them; empty where it is not known.
        adapters: fine-tuned adapters that replicas have loaded: id (name and content) by name. Recipes of a catalogue
            name the adapter; what is planned, run and saved names its id, and so does a measured quality table.
    """

    num_layers: int
    fingerprint: str = ""
    adapters: Mapping[str, str] = field(default_factory=dict)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Recipe(_Strict):
    name: Name
    description: Annotated[str, Field(min_length=1)]
    recipe: dict[str, Any]


class _SlaClass(_Strict):
    name: Name
    description: Annotated[str, Field(min_length=1)]
    ttft_ms: Annotated[FiniteFloat, Field(gt=0)]
    tpot_ms: Annotated[FiniteFloat, Field(gt=0)]
    min_quality: Score
    priority: Priority


class _Quota(_Strict):
    requests_per_minute: AtLeastOne | None = None
    prompt_tokens_per_minute: AtLeastOne | None = None
    concurrent_requests: AtLeastOne | None = None
    concurrent_prefills: AtLeastOne | None = None
    stored_mib: AtLeastOne | None = None

    def checked(self) -> Quota:
        stored_bytes = None if self.stored_mib is None else self.stored_mib << 20
        return Quota(
            self.requests_per_minute,
            self.prompt_tokens_per_minute,
            self.concurrent_requests,
            self.concurrent_prefills,
            stored_bytes,
        )


class _Tenant(_Strict):
    max_priority: Priority = MAX_PRIORITY
    sla_classes: list[Name] | None = None
    quota: _Quota = _Quota()


class _Quality(_Strict):
    source: Annotated[str, Field(min_length=1)]
    lengths_tokens: Lengths
    scores: dict[Name, Scores]


class _File(_Strict):
    recipes: Annotated[list[_Recipe], Field(min_length=1)]
    sla_classes: Annotated[list[_SlaClass], Field(min_length=1)]
    tenants: dict[TenantName, _Tenant] = Field(default_factory=dict)
    quality_table: str | None = None
    quality: _Quality | None = None

    @model_validator(mode="after")
    def _one_quality(self) -> Self:
        if (self.quality is None) == (self.quality_table is None):
            raise ValueError("must have exactly one of quality_table and quality")
        return self


class _MeasuredRecipe(BaseModel):
    recipe: dict[str, Any]
    recall: Scores


class _Measured(BaseModel):
    samples: int
    hardware: str
    date: str


class _Table(BaseModel):
    """The part of a measured table that is needed here; what else there is says how it was measured."""

    model_fingerprint: str = ""
    task: str
    measured: _Measured
    lengths_tokens: Lengths
    recipes: dict[str, _MeasuredRecipe]


def catalog_path(given: Path | None, model: str) -> Path:
    """The catalogue to use for a model: the given one, or the shipped one of that name (a folder's last part).

    Raises:
        ModelNotSupported: if neither exists; says what to do.
    """
    if given is not None:
        return given
    name = Path(model).name
    shipped = Path(str(files("services.gateway").joinpath("data", "catalogs")))
    known = {path.stem: path for path in sorted(shipped.glob("*.yaml"))}
    if name.lower() in known:
        return known[name.lower()]
    raise ModelNotSupported(
        f"no catalogue of model {name!r} is shipped (there are {', '.join(known)}): measure the quality of its "
        f"recipes, write a catalogue like {shipped / 'smollm2.yaml'}, and name it in SWAA_CATALOG"
    )


def load_catalog(path: Path, model: ServedModel) -> tuple[Catalog, tuple[Path, ...]]:
    """Read a catalogue, and its quality table if it names one; the catalogue, and the files it came from.

    Raises:
        InvalidRequest: naming file, field, value and bound, for what is wrong in it; InvalidRecipe if that is a recipe.
        ModelNotSupported: if a recipe was not measured as it is, or needs an adapter that is not loaded.
    """
    data = _validate(_File, _read_yaml(path), path)
    recipes = _recipes(data.recipes, model, path)
    classes = {entry.name: SlaClass(**entry.model_dump()) for entry in data.sla_classes}
    _check_unique("recipes", [entry.name for entry in data.recipes], path)
    _check_unique("sla_classes", [entry.name for entry in data.sla_classes], path)
    if FULL not in recipes or recipes[FULL].recipe.window is not None:
        raise InvalidRequest(
            f"{path}: recipes", sorted(recipes), f"must have {FULL!r}, with full attention (window null)"
        )
    if DEFAULT_SLA_CLASS not in classes:
        raise InvalidRequest(f"{path}: sla_classes", sorted(classes), f"must have {DEFAULT_SLA_CLASS!r}")
    tenants = _tenants(data.tenants, classes, path)
    if data.quality is not None:
        _check_points("quality", data.quality.lengths_tokens, data.quality.scores, recipes, path)
        scores = {name: tuple(points) for name, points in data.quality.scores.items()}
        quality = QualityTable(data.quality.source, tuple(data.quality.lengths_tokens), scores)
        return Catalog(recipes, classes, quality, tenants), (path,)
    assert data.quality_table is not None  # noqa: S101 - for the type checker
    table = path.parent / data.quality_table
    return Catalog(recipes, classes, _measured_quality(table, recipes, model), tenants), (path, table)


def _recipes(entries: Sequence[_Recipe], model: ServedModel, path: Path) -> dict[str, NamedRecipe]:
    recipes = {}
    for entry in entries:
        try:
            recipe = Recipe.from_mapping(entry.recipe)
            rules = recipe.resolve(model.num_layers)
        except InvalidRecipe as exc:
            raise InvalidRecipe(f"{path}: recipes.{entry.name}.{exc.field}", exc.value, exc.bound) from None
        try:
            pinned = recipe.pinned(model.adapters)
        except InvalidRecipe:
            raise ModelNotSupported(
                f"{path}: recipe {entry.name!r} needs adapter {recipe.adapter!r}, which is not loaded"
            ) from None
        recipes[entry.name] = NamedRecipe(entry.name, entry.description, pinned, rules)
    return recipes


def _tenants(given: Mapping[str, _Tenant], classes: Mapping[str, SlaClass], path: Path) -> dict[str, TenantPolicy]:
    tenants = {DEFAULT_TENANT: TenantPolicy()}
    for name, tenant in given.items():
        for sla_class in tenant.sla_classes or ():
            if sla_class not in classes:
                field = f"{path}: tenants.{name}.sla_classes"
                raise InvalidRequest(field, sla_class, f"unknown SLA class; known are {', '.join(sorted(classes))}")
        allowed = None if tenant.sla_classes is None else frozenset(tenant.sla_classes)
        tenants[name] = TenantPolicy(tenant.max_priority, allowed, tenant.quota.checked())
    return tenants


def _measured_quality(path: Path, recipes: Mapping[str, NamedRecipe], model: ServedModel) -> QualityTable:
    try:
        table = _validate(_Table, json.loads(_read(path)), path)
    except json.JSONDecodeError as exc:
        raise InvalidRequest(str(path), exc.msg, f"must be JSON (line {exc.lineno})") from None
    for name, named in recipes.items():
        measured = table.recipes.get(name)
        if measured is None or Recipe.from_mapping(measured.recipe) != named.recipe:
            raise ModelNotSupported(f"{path} was not measured for recipe {name!r} as it is; measure it anew")
    recall = {name: tuple(table.recipes[name].recall) for name in recipes}
    _check_points("recipes", table.lengths_tokens, recall, recipes, path)
    measured_on = table.measured
    source = f"{table.task}, {measured_on.samples} samples a point, {measured_on.hardware}, {measured_on.date}"
    if table.model_fingerprint and model.fingerprint and table.model_fingerprint != model.fingerprint:
        source += "; of other weights, or in another dtype, than are served here"
    return QualityTable(source, tuple(table.lengths_tokens), recall)


def _check_points(
    field: str,
    lengths: Sequence[int],
    scores: Mapping[str, Sequence[float]],
    recipes: Mapping[str, NamedRecipe],
    path: Path,
) -> None:
    """Every recipe has a score at every length, and nothing else has; lengths ascend."""
    if list(lengths) != sorted(set(lengths)):
        raise InvalidRequest(f"{path}: lengths_tokens", list(lengths), "must ascend")
    if set(scores) != set(recipes):
        odd = sorted(set(scores) ^ set(recipes))
        raise InvalidRequest(f"{path}: {field}", odd, "every recipe must have scores, and no others")
    for name, points in scores.items():
        if len(points) != len(lengths):
            raise InvalidRequest(
                f"{path}: {field}.{name}", list(points), f"must have {len(lengths)} scores, one a length"
            )


def _check_unique(field: str, names: Sequence[str], path: Path) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidRequest(f"{path}: {field}", name, "is there twice")


def _validate(model: type[_Model], data: Any, path: Path) -> _Model:
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        first, *others = exc.errors()
        where = ".".join(map(str, first["loc"])) or "file"
        more = f" (and {len(others)} more)" if others else ""
        raise InvalidRequest(f"{path}: {where}", first["input"], f"{first['msg']}{more}") from None


class _Loader(yaml.SafeLoader):
    """Plain data only, and a key that is there twice is an error: YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.load(_read(path), Loader=_Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as exc:
        line = f" (line {exc.problem_mark.line + 1})" if exc.problem_mark else ""
        raise InvalidRequest(str(path), exc.problem, f"must be YAML{line}") from None
    except yaml.YAMLError as exc:
        raise InvalidRequest(str(path), str(exc), "must be YAML") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise InvalidRequest(str(path), exc.strerror, "must be a readable file") from None
    except UnicodeDecodeError as exc:
        raise InvalidRequest(str(path), f"byte {exc.start}", "must be UTF-8") from None
