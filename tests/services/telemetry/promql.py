"""What PromQL expressions ask for: metrics, and the labels they are told apart by."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import promql_parser
import yaml

from tests.k8s.manifests import REPOSITORY

MONITORING = REPOSITORY / "k8s" / "components" / "monitoring"
TARGET_LABELS = {"pod", "namespace", "job", "instance", "le"}
"""What Prometheus itself adds, and what every histogram has."""


def dashboard() -> dict[str, Any]:
    """Grafana's."""
    found: dict[str, Any] = json.loads((MONITORING / "dashboards" / "swaa.json").read_text(encoding="utf-8"))
    return found


def alerts() -> list[dict[str, Any]]:
    """All alert rules."""
    rules = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text(encoding="utf-8"))
    return [rule for group in rules["spec"]["groups"] for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """PromQL of dashboard and alerts, by where it is."""
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    }
    return panels | {rule["alert"]: rule["expr"] for rule in alerts()}


def asked_for(expression: str) -> tuple[set[str], set[str]]:
    """Names of metrics, and of labels, in an expression of Grafana's or Prometheus's. Raises ValueError."""
    metrics: set[str] = set()
    labels: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            metrics.add(node.name or "")
            labels.update(matcher.name for matcher in node.matchers.matchers)
        return True

    expression = expression.replace("$__rate_interval", "5m")
    promql_parser.walk(promql_parser.parse(expression), visit)
    for names in re.findall(r"\b(?:by|on|group_left|ignoring|without) \(([^)]*)\)", expression):
        labels.update(name.strip() for name in names.split(",") if name.strip())
    return metrics, labels


def shown_labels() -> Iterator[tuple[str, set[str], set[str]]]:
    """Where a legend or an annotation shows labels: where, which, and those that the expression leaves there."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], set(re.findall(r"{{(\w+)}}", target["legendFormat"])), asked_for(target["expr"])[1]
    for rule in alerts():
        shown = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
        yield rule["alert"], shown, asked_for(rule["expr"])[1]
