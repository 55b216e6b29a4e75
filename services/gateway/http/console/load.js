// Live load, from the figures that Prometheus reads too.

import * as api from "./api.js";
import { byId, element, show, svg, tell } from "./dom.js";
import { bytes, count, percent } from "./format.js";

const PERIOD_MS = 2000, MEAN_OVER_MS = 60_000, WIDTH = 1000;
const USES = { full: "k-full", lookback: "k-lookback", window: "k-window", saving: "k-sinks", parked: "k-other" };
const USE_NAMES = { full: "full layers", lookback: "looking back", window: "windows", saving: "being saved", parked: "hot sessions" };

// Prometheus' text → [{name, labels, value}].
export function parseMetrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = /^([a-z_:][a-z0-9_:]*)(?:\{(.*)\})? (\S+)/i.exec(line);
    if (!found) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, value]) => [key, value]));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

export class Load {
  #past = [];

  async watch() {
    for (;;) {
      if (document.visibilityState === "visible") await this.#refresh();
      await new Promise((resolve) => setTimeout(resolve, PERIOD_MS));
    }
  }

  async #refresh() {
    try {
      const text = await api.metrics();
      if (text === null) tell(byId("load-text"), "This gateway tells no figures.");
      else this.#show(parseMetrics(text));
    } catch {
      tell(byId("load-text"), "The gateway does not answer.");
    }
  }

  #show(samples) {
    const sum = (name, labels = {}) => total(samples.filter((sample) => sample.name === name && Object.entries(labels).every(([key, value]) => sample.labels[key] === value)));
    const rate = this.#rate(sum("swaa_generated_tokens_total"));
    const tiles = [["Turns here", count(sum("swaa_answers_running"))]];
    const hasEngine = sum("swaa_engine_up") === 1;
    if (hasEngine) {
      tiles.push(["Running", count(sum("swaa_engine_requests", { state: "running" }))], ["Waiting", count(sum("swaa_engine_requests", { state: "waiting" }))]);
      const blocks = samples.filter(({ name }) => name === "swaa_kv_blocks");
      const used = total(blocks.filter(({ labels }) => labels.use !== "free")), all = total(blocks), size = sum("swaa_kv_block_bytes");
      tiles.push(["KV memory", percent(used, all)]);
      this.#memory(blocks, all, `${bytes(used * size)} of ${bytes(all * size)} in use`);
    }
    tiles.push(["Tokens a second", rate]);
    byId("load-tiles").replaceChildren(...tiles.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    const note = "Tokens a second: of answers that ended in the last minute.";
    const silent = samples.some(({ name }) => name === "swaa_engine_up") ? "The engine is in a long step, and tells more after it." : "Queue and KV memory are told by the replicas.";
    tell(byId("load-text"), hasEngine ? note : `${note} ${silent}`);
    show(byId("load-memory"), hasEngine);
  }

  // Counted when turns end, so over a while.
  #rate(tokens) {
    const now = performance.now();
    this.#past.push({ now, tokens });
    while (this.#past.length > 2 && now - this.#past[0].now > MEAN_OVER_MS) this.#past.shift();
    const [first] = this.#past;
    return now > first.now ? ((tokens - first.tokens) / ((now - first.now) / 1000)).toFixed(1) : "0.0";
  }

  #memory(blocks, all, text) {
    let at = 0;
    const parts = blocks.filter(({ labels, value }) => labels.use in USES && value > 0).map(({ labels, value }) => {
      const width = (value / all) * WIDTH, x = at;
      at += width;
      return svg("rect", { class: USES[labels.use], x, y: 0, width, height: 14 }, svg("title", {}, USE_NAMES[labels.use]));
    });
    const uses = blocks.filter(({ labels, value }) => labels.use in USES && value > 0).map(({ labels, value }) => `${USE_NAMES[labels.use]} ${percent(value, all)}`);
    const told = `KV memory: ${[text, ...uses].join(", ")}.`;
    byId("load-memory").replaceChildren(
      svg("svg", { viewBox: `0 0 ${WIDTH} 14`, role: "img", "aria-label": told, preserveAspectRatio: "none" }, svg("rect", { class: "empty", x: 0, y: 0, width: WIDTH, height: 14 }), ...parts),
      element("p", { class: "hint" }, told));
  }
}

function total(samples) {
  return samples.reduce((sum, { value }) => sum + value, 0);
}
