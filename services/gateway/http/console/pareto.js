// Quality against predicted time to first token: one dot a recipe, the best of both joined by a line.

import { svg } from "./dom.js";
import { ms, quality } from "./format.js";

const WIDTH = 520, HEIGHT = 330, BOX = { left: 44, right: 18, top: 16, bottom: 46 };
const LINE = 15, LETTER = 6.9;

// Candidates that no other beats in both, by time.
export function front(candidates) {
  const byTime = [...candidates].sort((a, b) => a.prediction.ttft_ms - b.prediction.ttft_ms || b.prediction.quality - a.prediction.quality);
  let best = -1;
  return byTime.filter(({ prediction }) => prediction.quality > best && ((best = prediction.quality), true));
}

export function drawPareto(candidates, chosen, objective) {
  const times = candidates.map(({ prediction }) => prediction.ttft_ms);
  const low = Math.max(0.01, Math.min(...times)) / 1.5, high = Math.max(...times) * 1.5;
  const x = (time) => BOX.left + (Math.log(Math.min(Math.max(time, low), high) / low) / Math.log(high / low)) * (WIDTH - BOX.left - BOX.right);
  const y = (value) => HEIGHT - BOX.bottom - value * (HEIGHT - BOX.top - BOX.bottom);
  const steps = front(candidates).map(({ prediction }) => `${x(prediction.ttft_ms)},${y(prediction.quality)}`);
  const names = candidates.map(({ recipe, prediction }) => `${recipe.name} ${quality(prediction.quality)} at ${ms(prediction.ttft_ms)}`);
  return svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Quality against predicted time to first token: ${names.join(", ")}. The table says the same.` },
    ...drawAim(objective, x, y, high), ...drawAxes(x, y, low, high),
    svg("polyline", { class: "front", points: steps.join(" ") }), ...drawDots(candidates, chosen, x, y));
}

function drawAim({ ttft_ms: time, min_quality: least }, x, y, high) {
  const right = x(Math.min(time, high));
  const area = { x: BOX.left, y: y(1), width: Math.max(0, right - BOX.left), height: y(least) - y(1) };
  return [
    svg("rect", { class: "aim-area", ...area }),
    svg("path", { class: "aim", d: `M${BOX.left},${y(least)} H${right}${time < high ? ` V${y(1)}` : ""}` }),
  ];
}

function drawAxes(x, y, low, high) {
  const ticks = timeTicks(low, high);
  return [
    svg("path", { class: "axis", d: `M${BOX.left},${y(1)} V${y(0)} H${WIDTH - BOX.right}` }),
    ...[0, 0.5, 1].map((value) => svg("text", { x: BOX.left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1))),
    ...ticks.map((time) => svg("text", { x: x(time), y: HEIGHT - BOX.bottom + 18, "text-anchor": "middle" }, ms(time).replace(".00", "").replace(".0", ""))),
    svg("text", { x: (WIDTH + BOX.left) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "predicted time to first token (shaded: meets the aim)"),
    svg("text", { x: 0, y: 8 }, "quality"),
  ];
}

function timeTicks(low, high) {
  const ticks = [];
  for (let decade = 10 ** Math.floor(Math.log10(low)); decade <= high; decade *= 10) {
    for (const step of high / low > 30 ? [1] : [1, 2, 5]) {
      if (decade * step >= low && decade * step <= high) ticks.push(decade * step);
    }
  }
  return ticks;
}

// Names stand beside their dots, on the side that has room, pushed down until they do not touch one another.
function drawDots(candidates, chosen, x, y) {
  const taken = [];
  return candidates.flatMap(({ recipe, prediction }) => {
    const [px, py] = [x(prediction.ttft_ms), y(prediction.quality)], width = recipe.name.length * LETTER;
    const leftward = px + 10 + width > WIDTH;
    const from = leftward ? px - 10 - width : px + 10;
    let row = py + 4;
    while (taken.some((other) => Math.abs(other.row - row) < LINE && from < other.from + other.width && other.from < from + width)) row += LINE;
    taken.push({ row, from, width });
    const on = recipe.name === chosen;
    return [
      svg("circle", { class: on ? "dot on" : "dot", cx: px, cy: py, r: on ? 6.5 : 5 }),
      svg("text", { class: on ? "strong" : "", x: leftward ? px - 10 : px + 10, y: row, "text-anchor": leftward ? "end" : "start" }, recipe.name),
    ];
  });
}
