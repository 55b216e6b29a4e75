// Figures in words, the same everywhere on the page.

export const count = (value) => Math.round(value).toLocaleString("en");

export const quality = (value) => value.toFixed(2);

export function ms(value) {
  if (!Number.isFinite(value)) return "–";
  if (value < 10) return `${value.toFixed(1)} ms`;
  if (value < 1000) return `${value.toFixed(0)} ms`;
  return value < 100_000 ? `${(value / 1000).toFixed(2)} s` : `${count(value / 1000)} s`;
}

export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const unit = value < 1 ? 0 : Math.min(Math.floor(Math.log2(value) / 10), units.length - 1);
  return `${(value / 1024 ** unit).toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

export function percent(part, whole) {
  if (!whole) return "0 %";
  const value = (100 * part) / whole;
  return value > 0 && value < 1 ? "under 1 %" : `${value.toFixed(0)} %`;
}

export const plural = (value, name) => `${count(value)} ${name}${value === 1 ? "" : "s"}`;

export function ago(seconds) {
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${plural(Math.floor(seconds / 60), "minute")} ago`;
  return seconds < 86_400 ? `${plural(Math.floor(seconds / 3600), "hour")} ago` : `${plural(Math.floor(seconds / 86_400), "day")} ago`;
}
