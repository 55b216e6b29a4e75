// Which KV each layer keeps, from recipe and positions: the rules of swaa_runtime/recipe.py (resolve) and
// swaa_runtime/visibility.py (keeps_everything, first_needed), in tokens. Blocks round up what memory really holds.

export const KINDS = ["full", "lookback", "window"];

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

export function summary(rules, moment) {
  return KINDS.map((kind) => {
    const layers = rules.filter((rule) => rule.kind === kind);
    return { kind, layers: layers.length, tokens: layers.length ? spanTokens(keptSpans(layers[0], moment)) : 0 };
  }).filter((group) => group.layers > 0);
}
