// The gateway's endpoints. Addresses are relative to the page, so that it works behind a path of a proxy, too.

import { readEvents } from "./events.js";
import { authorization } from "./key.js";

export class ServiceError extends Error {
  constructor(error, retryAfterMs) {
    super(error.message);
    this.name = "ServiceError";
    this.code = error.code;
    this.retryAfterMs = retryAfterMs;
  }
}

export const info = () => json("GET", "api/info");
export const recipes = () => json("GET", "api/recipes");
export const plan = (prompt, maxTokens, headers, signal) =>
  json("POST", "api/plan", { prompt, max_tokens: maxTokens }, headers, signal);
export const sessions = () => json("GET", "api/sessions?limit=50");
export const forkSession = (id) => json("POST", `api/sessions/${encodeURIComponent(id)}/fork`);
export const deleteSession = (id) => request("DELETE", `api/sessions/${encodeURIComponent(id)}`);

export async function metrics() {
  const response = await fetch("metrics", { headers: { accept: "text/plain", ...authorization() } });
  return response.ok ? response.text() : null;
}

// Yields {kind: "accepted" | "prefill" | "text" | "finish", ...} and returns at [DONE].
export async function* chat(body, headers, signal) {
  const response = await request("POST", "v1/chat/completions", { ...body, stream: true }, headers, signal);
  for await (const event of readEvents(response.body)) {
    if (event.type === "error") throw new ServiceError(JSON.parse(event.data).error);
    const progress = /^prefill (\d+)\/(\d+)$/.exec(event.comment);
    if (progress) yield { kind: "prefill", done: Number(progress[1]), total: Number(progress[2]) };
    if (event.data === "[DONE]") return;
    if (event.data) yield* chunkEvents(JSON.parse(event.data));
  }
  throw new ServiceError({ message: "the answer broke off", code: "broken" });
}

function* chunkEvents(chunk) {
  if (chunk.swaa?.accepted) yield { kind: "accepted", accepted: chunk.swaa.accepted };
  const text = chunk.choices?.[0]?.delta?.content;
  if (text) yield { kind: "text", text };
  if (chunk.swaa?.finish) yield { kind: "finish", finish: chunk.swaa.finish };
}

async function json(...args) {
  return (await request(...args)).json();
}

async function request(method, path, body, headers = {}, signal = undefined) {
  const given = body === undefined ? {} : { "content-type": "application/json" };
  const response = await fetch(path, {
    method, signal, headers: { ...given, ...authorization(), ...headers }, body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const retryAfterMs = Number(response.headers.get("retry-after-ms")) || undefined;
  throw new ServiceError(told.error ?? { message: `HTTP ${response.status}`, code: "http" }, retryAfterMs);
}
