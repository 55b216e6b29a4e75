// The picture of layers by positions, and the table that says the same in figures.

import { byId, element, show, svg, tell } from "./dom.js";
import { bytes, count, percent, plural } from "./format.js";
import { keptSpans, layerRules, summary } from "./residency.js";

const LEAST_PX = 3;
const NAMES = { full: "full attention", lookback: "sliding, kept to look back", window: "sliding", sinks: "sinks of sliding layers" };

export class Memory {
  #numLayers;
  #bytesPerTokenLayer;
  #recipes = new Map();
  #shown = "";
  #moment = null;
  #measured = null;

  constructor(numLayers, bytesPerTokenLayer, recipes) {
    this.#numLayers = numLayers;
    this.#bytesPerTokenLayer = bytesPerTokenLayer;
    for (const recipe of recipes) this.#recipes.set(recipe.name, recipe);
    const select = byId("memory-recipe");
    select.replaceChildren(...recipes.map(({ name }) => element("option", { value: name }, name)));
    select.addEventListener("change", () => this.#draw(select.value));
  }

  // `moment`: {done, total, promptStop, continues}, in tokens; `measured`: the KvMemory of a finished turn.
  show(recipe, moment, measured = null) {
    this.#recipes.set(recipe.name, recipe);
    this.#shown = recipe.name;
    this.#moment = moment;
    this.#measured = measured;
    byId("memory-recipe").value = recipe.name;
    this.#draw(recipe.name);
  }

  #draw(name) {
    const moment = this.#moment;
    if (moment === null) return;
    const rules = layerRules(this.#recipes.get(name), this.#numLayers);
    const groups = summary(rules, moment);
    const kept = groups.reduce((sum, group) => sum + group.layers * group.tokens, 0) * this.#bytesPerTokenLayer;
    const full = this.#numLayers * moment.done * this.#bytesPerTokenLayer;
    const text = this.#text(name, moment, kept, full);
    tell(byId("memory-text"), text);
    byId("memory-rows").replaceChildren(...groups.map((group) => this.#row(group)));
    for (const id of ["memory-picture", "memory-controls", "memory-table"]) show(byId(id));
    byId("memory-picture").replaceChildren(drawLayers(rules, moment, text, Math.max(260, byId("memory-picture").clientWidth)));
  }

  #text(name, moment, kept, full) {
    const at = `At position ${count(moment.done)} of ${count(moment.total)}`;
    const said = `${at}, ${name} keeps ${bytes(kept)} of the ${bytes(full)} of full attention (${percent(kept, full)}).`;
    const measured = name === this.#shown ? this.#measured : null;
    if (measured === null) return said;
    const [resident, peak] = [Number(measured.resident_bytes), Number(measured.peak_bytes)];
    return `${said} Measured, in whole blocks: ${bytes(resident)} at the end, ${bytes(peak)} at most.`;
  }

  #row({ kind, layers, tokens }) {
    const swatch = element("span", { class: `swatch k-${kind}`, "aria-hidden": "true" });
    return element("tr", {},
      element("th", { scope: "row" }, swatch, NAMES[kind]),
      element("td", {}, count(layers)),
      element("td", {}, `${count(tokens)} each`),
      element("td", {}, bytes(layers * tokens * this.#bytesPerTokenLayer)));
  }
}

// `width`: of the drawing, in CSS pixels.
function drawLayers(rules, moment, text, width) {
  const rowHeight = Math.max(5, Math.min(16, 300 / rules.length)), gap = rowHeight > 8 ? 2 : 1;
  const height = rules.length * rowHeight, scale = width / Math.max(1, moment.total);
  const rows = rules.flatMap((rule, layer) => {
    const place = { y: layer * rowHeight, height: rowHeight - gap };
    const spans = keptSpans(rule, moment).map(({ kind, start, stop }) =>
      svg("rect", { ...place, class: `k-${kind}`, x: start * scale, width: Math.max(LEAST_PX, (stop - start) * scale) }));
    const title = svg("title", {}, `layer ${layer}: ${NAMES[rule.kind]}`);
    return [svg("g", {}, title, svg("rect", { ...place, class: "empty", x: 0, width }), ...spans)];
  });
  const now = moment.done * scale;
  return svg("svg", { viewBox: `0 -4 ${width} ${height + 8}`, role: "img", "aria-label": `Layers by positions. ${text} ${plural(rules.length, "layer")}.` },
    ...rows, svg("line", { class: "now", x1: now, x2: now, y1: -4, y2: height + 2 }));
}
