// Which KV each layer keeps, from recipe and positions: the rules of swaa_runtime/recipe.py (resolve) and
// swaa_runtime/visibility.py (keeps_everything, first_needed), in tokens. Blocks round up what memory really holds.

export const KINDS = ["full", "lookback", "window", "sinks"];

export function layerRules(recipe, numLayers) {
  const full = new Set(recipe.full_layers), lookback = new Set(recipe.lookback_layers);
  return Array.from({ length: numLayers }, (_, layer) => {
    if (!recipe.window || full.has(layer)) return { kind: "full" };
    const slides = { kind: "window", window: recipe.window, sinks: recipe.sink_tokens, fullDecode: false, fullTail: 0 };
    if (!lookback.has(layer) || !(recipe.full_decode || recipe.full_tail)) return slides;
    return { ...slides, kind: "lookback", fullDecode: recipe.full_decode, fullTail: recipe.full_tail };
  });
}

// Half-open spans of positions that a layer keeps when `done` tokens are computed.
export function keptSpans(rule, { done, promptStop, continues }) {
  const all = rule.kind === "full" || rule.fullDecode || (rule.fullTail > 0 && (continues || done < promptStop));
  const first = all ? 0 : Math.max(rule.sinks, done - rule.window + 1);
  const sinks = rule.kind === "full" ? 0 : Math.min(rule.sinks, done);
  const spans = [];
  if (sinks > 0) spans.push({ kind: "sinks", start: 0, stop: sinks });
  const start = Math.max(first, sinks);
  if (start < done) spans.push({ kind: rule.kind, start, stop: done });
  return spans;
}

export const spanTokens = (spans) => spans.reduce((sum, span) => sum + span.stop - span.start, 0);

// By kind of layer, and the sinks of all sliding layers: how many layers, and how many tokens each of them keeps.
export function summary(rules, moment) {
  const groups = new Map();
  for (const rule of rules) {
    for (const span of keptSpans(rule, moment)) {
      const group = groups.get(span.kind) ?? { kind: span.kind, layers: 0, tokens: spanTokens([span]) };
      group.layers += 1;
      groups.set(span.kind, group);
    }
  }
  return KINDS.filter((kind) => groups.has(kind)).map((kind) => groups.get(kind));
}
