// Every recipe that was weighed: the plot and the table.

import { byId, element, show, tell } from "./dom.js";
import { bytes, count, ms, plural, quality } from "./format.js";
import { drawPareto } from "./pareto.js";

export function showPlan(plan) {
  const chosen = plan.chosen.recipe.name;
  const length = `${plural(plan.prompt_tokens, "prompt token")}${plan.history_tokens ? ` after ${count(plan.history_tokens)} of history` : ""}`;
  tell(byId("plan-reason"), `${length}. ${plan.reason}`);
  byId("candidate-rows").replaceChildren(...plan.candidates.flatMap((candidate) => rows(candidate, chosen)));
  show(byId("pareto"));
  show(byId("candidates"));
  byId("pareto").replaceChildren(drawPareto(plan.candidates, chosen, plan.objective, Math.max(260, byId("pareto").clientWidth)));
}

function rows({ recipe, prediction, meets, misses }, chosen) {
  const isChosen = recipe.name === chosen;
  const main = element("tr", { class: isChosen ? "chosen" : "", "aria-current": isChosen ? "true" : null },
    element("th", { scope: "row", class: "name", title: recipe.description }, recipe.name),
    element("td", {}, quality(prediction.quality)),
    element("td", {}, ms(prediction.ttft_ms)),
    element("td", {}, ms(prediction.tpot_ms)),
    element("td", { class: "roomy" }, count(prediction.computed_tokens)),
    element("td", {}, bytes(Number(prediction.kv_bytes))));
  const verdict = meets ? "meets the aim" : `misses: ${misses.join("; ")}`;
  const waits = prediction.wait_ms >= 1 ? [`${ms(prediction.wait_ms)} of TTFT is waiting`] : [];
  const restore = prediction.restore?.restored_tokens ? [prediction.restore.reason] : [];
  const more = [...waits, ...restore].map((text) => ` · ${text}`).join("");
  return [main, element("tr", { class: "why" }, element("td", { colspan: "6" }, element("span", { class: meets ? "met" : "missed" }, verdict), more))];
}
