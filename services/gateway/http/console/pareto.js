// Quality against predicted time to first token: one dot a recipe, the best of both joined by a line.

import { svg } from "./dom.js";
import { ms, quality } from "./format.js";

const HEIGHT = 330, BOX = { left: 34, right: 18, top: 30, bottom: 46 };
const LINE = 15, LETTER = 6.9;

// Candidates that no other beats in both, by time.
export function front(candidates) {
  const byTime = [...candidates].sort((a, b) => a.prediction.ttft_ms - b.prediction.ttft_ms || b.prediction.quality - a.prediction.quality);
  let best = -1;
  return byTime.filter(({ prediction }) => prediction.quality > best && ((best = prediction.quality), true));
}

// `width`: of the drawing, in CSS pixels, so that its text has the page's size.
export function drawPareto(candidates, chosen, objective, width) {
  const times = candidates.map(({ prediction }) => prediction.ttft_ms);
  const low = Math.max(0.01, Math.min(...times)) / 1.5, high = Math.max(...times) * 1.5;
  const x = (time) => BOX.left + (Math.log(Math.min(Math.max(time, low), high) / low) / Math.log(high / low)) * (width - BOX.left - BOX.right);
  const y = (value) => HEIGHT - BOX.bottom - value * (HEIGHT - BOX.top - BOX.bottom);
  const steps = front(candidates).map(({ prediction }) => `${x(prediction.ttft_ms)},${y(prediction.quality)}`);
  const names = candidates.map(({ recipe, prediction }) => `${recipe.name} ${quality(prediction.quality)} at ${ms(prediction.ttft_ms)}`);
  return svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `Quality against predicted time to first token: ${names.join(", ")}. The table says the same.` },
    ...drawAim(objective, x, y, high), ...drawAxes(x, y, low, high, width),
    svg("polyline", { class: "front", points: steps.join(" ") }), ...drawDots(candidates, chosen, x, y, width));
}

function drawAim({ ttft_ms: time, min_quality: least }, x, y, high) {
  const right = x(Math.min(time, high));
  const area = { x: BOX.left, y: y(1), width: Math.max(0, right - BOX.left), height: y(least) - y(1) };
  return [
    svg("rect", { class: "aim-area", ...area }),
    svg("path", { class: "aim", d: `M${BOX.left},${y(least)} H${right}${time < high ? ` V${y(1)}` : ""}` }),
  ];
}

function drawAxes(x, y, low, high, width) {
  const ticks = timeTicks(low, high);
  return [
    svg("path", { class: "axis", d: `M${BOX.left},${y(1)} V${y(0)} H${width - BOX.right}` }),
    ...[0, 0.5, 1].map((value) => svg("text", { x: BOX.left - 8, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(1))),
    ...ticks.map((time) => svg("text", { x: x(time), y: HEIGHT - BOX.bottom + 18, "text-anchor": "middle" }, ms(time).replace(".00", "").replace(".0", ""))),
    svg("text", { x: (width + BOX.left) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "predicted TTFT; shaded: meets the aim"),
    svg("text", { x: 0, y: 12 }, "quality"),
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

// Names stand beside their dots where nothing else stands: right or left of them, else further down or up.
function drawDots(candidates, chosen, x, y, width) {
  const dots = candidates.map(({ recipe, prediction }) => ({ name: recipe.name, x: x(prediction.ttft_ms), y: y(prediction.quality) }));
  const taken = dots.map((dot) => ({ left: dot.x - 8, right: dot.x + 8, y: dot.y }));
  return dots.flatMap((dot) => {
    const place = findPlace(dot, taken, width);
    taken.push(place);
    const on = dot.name === chosen;
    return [
      svg("circle", { class: on ? "dot on" : "dot", cx: dot.x, cy: dot.y, r: on ? 6.5 : 5 }),
      svg("text", { class: on ? "strong" : "", x: place.left, y: place.y + 4 }, dot.name),
    ];
  });
}

function findPlace(dot, taken, width) {
  const length = dot.name.length * LETTER;
  const places = [0, 1, -1, 2, -2, 3, 4, 5, 6].flatMap((row) => [dot.x + 11, dot.x - 11 - length].map((left) => ({ left, right: left + length, y: dot.y + row * LINE })));
  const isFree = (place) =>
    place.left > BOX.left && place.right < width && place.y > 8 && place.y < HEIGHT - BOX.bottom &&
    taken.every((other) => Math.abs(other.y - place.y) >= LINE || place.right < other.left || other.right < place.left);
  return places.find(isFree) ?? places[0];
}
