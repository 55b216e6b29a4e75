// The form: what is asked, as body and headers of a turn.

import { byId, element, tell } from "./dom.js";
import { bytes, ms, plural } from "./format.js";

const HEADERS = { sla: "x-swaa-sla", session: "x-swaa-session", recipe: "x-swaa-recipe", ttft: "x-slo-ttft-ms", tpot: "x-slo-tpot-ms", quality: "x-swaa-min-quality" };

export class RequestForm {
  #model;
  #maxBytes;
  #classes;

  constructor(info, recipes) {
    this.#model = info.model;
    this.#maxBytes = info.limits.prompt_bytes;
    this.#classes = new Map(recipes.sla_classes.map((sla) => [sla.name, sla]));
    byId("sla").replaceChildren(...recipes.sla_classes.map(({ name }) => element("option", { value: name }, name)));
    if (this.#classes.has("balanced")) byId("sla").value = "balanced";
    byId("recipe").append(...recipes.recipes.map(({ recipe }) => element("option", { value: recipe.name }, recipe.name)));
    byId("sla").addEventListener("change", () => this.#tellClass());
    this.#tellClass();
    this.#takeFiles();
  }

  // {prompt, body, headers, maxTokens, continues}; throws an Error that says what is missing, its `field` where.
  read() {
    for (const input of byId("form").querySelectorAll("input[type=number]")) {
      if (!input.checkValidity()) throw wrong(input, `${input.labels[0].textContent}: ${input.validationMessage}`);
    }
    const question = byId("question").value.trim(), text = byId("document").value.trimEnd();
    if (!question) throw wrong(byId("question"), "Please write a question.");
    const headers = {};
    for (const [id, header] of Object.entries(HEADERS)) {
      if (byId(id).value) headers[header] = byId(id).value;
    }
    if (byId("strict").checked) headers["x-swaa-strict"] = "true";
    const messages = [{ role: "user", content: text.trim() ? `${text}\n\n${question}` : question }];
    const maxTokens = Number(byId("max-tokens").value) || 256;
    const body = { model: this.#model, messages, max_tokens: maxTokens, temperature: 0 };
    return { prompt: { messages }, body, headers, maxTokens, continues: Boolean(headers["x-swaa-session"]) };
  }

  // Go on in this session with the next question; its document is in it already.
  continueIn(sessionId) {
    byId("document").value = "";
    byId("file").value = "";
    this.#tellSize();
    this.offerSession(sessionId);
    byId("question").focus();
  }

  offerSession(sessionId) {
    const select = byId("session");
    if (![...select.options].some((option) => option.value === sessionId)) {
      select.append(element("option", { value: sessionId }, `Continue ${sessionId.slice(0, 12)}…`));
    }
    select.value = sessionId;
  }

  forgetSession(sessionId) {
    [...byId("session").options].find((option) => option.value === sessionId)?.remove();
  }

  #tellClass() {
    const sla = this.#classes.get(byId("sla").value);
    if (sla) tell(byId("sla-hint"), `${sla.description}: first token within ${ms(sla.ttft_ms)}, then ${ms(sla.tpot_ms)} a token, quality at least ${sla.min_quality}.`);
  }

  #tellSize() {
    const size = new Blob([byId("document").value]).size;
    tell(byId("document-size"), size ? bytes(size) : "");
  }

  #takeFiles() {
    const drop = byId("drop");
    byId("document").addEventListener("input", () => this.#tellSize());
    byId("file").addEventListener("change", () => this.#take(byId("file").files[0]));
    drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      drop.classList.remove("over");
      this.#take(event.dataTransfer.files[0]);
    });
  }

  async #take(file) {
    if (!file) return;
    const hint = byId("document-hint");
    if (file.size > this.#maxBytes) return tell(hint, `${file.name} is ${bytes(file.size)}; the service takes ${bytes(this.#maxBytes)}.`);
    try {
      byId("document").value = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      tell(hint, `Read from ${file.name}, ${plural(file.size, "byte")}.`);
    } catch {
      tell(hint, `${file.name} is not UTF-8 text.`);
    }
    this.#tellSize();
  }
}

function wrong(input, message) {
  return Object.assign(new Error(message), { field: input });
}
