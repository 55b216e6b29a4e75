// The page: one turn at a time, from the form through plan and stream to the pictures.

import * as api from "./api.js";
import { byId, element, tell } from "./dom.js";
import { count } from "./format.js";
import { offerKey } from "./key.js";
import { Load } from "./load.js";
import { Memory } from "./memory.js";
import { showPlan } from "./plan.js";
import { Reply } from "./reply.js";
import { RequestForm } from "./request.js";
import { Sessions } from "./sessions.js";

class Console {
  #form;
  #memory;
  #sessions;
  #planBytes;
  #reply = new Reply();
  #running = null;

  constructor(info, recipes) {
    this.#form = new RequestForm(info, recipes);
    this.#memory = new Memory(info.num_layers, info.kv_bytes_per_token_layer, recipes.recipes.map(({ recipe }) => recipe));
    this.#sessions = new Sessions(this.#form);
    this.#planBytes = info.limits.plan_prompt_bytes;
  }

  start() {
    byId("form").addEventListener("submit", (event) => { event.preventDefault(); this.#run((asked) => this.#ask(asked)); });
    byId("plan-only").addEventListener("click", () => this.#run(async (asked) => {
      await this.#plan(asked);
      this.#reply.status("Planned; nothing was run.");
    }));
    byId("cancel").addEventListener("click", () => this.#running?.abort());
    byId("question").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !byId("confirm").open) this.#running?.abort();
    });
    this.#sessions.refresh();
    new Load().watch();
  }

  // Runs one thing at a time; whatever comes of it, the page is ready for the next.
  async #run(work) {
    if (this.#running !== null) return;
    this.#reply.begin();
    this.#setRunning(new AbortController());
    let ending = null;
    try {
      await work(this.#form.read());
    } catch (error) {
      ending = error.name === "AbortError" ? "Cancelled." : "Failed.";
      if (error.name !== "AbortError") this.#reply.problem(error);
      error.field?.focus();
    }
    this.#reply.end(ending);
    this.#setRunning(null);
  }

  #setRunning(controller) {
    const focused = document.activeElement;
    this.#running = controller;
    byId("cancel").disabled = controller === null;
    byId("send").disabled = byId("plan-only").disabled = controller !== null;
    // A disabled button loses the focus: it goes to what can be pressed now.
    if (focused === byId("send") || focused === byId("plan-only")) byId("cancel").focus();
    else if (focused === byId("cancel")) byId("send").focus();
  }

  async #plan({ prompt, maxTokens, headers, continues }) {
    if (new Blob([prompt.messages[0].content]).size > this.#planBytes) return;
    const plan = await api.plan(prompt, maxTokens, headers, this.#running.signal);
    showPlan(plan);
    const stop = plan.history_tokens + plan.prompt_tokens;
    this.#memory.show(plan.chosen.recipe, { done: stop, total: stop + maxTokens, promptStop: stop, continues });
  }

  async #ask(asked) {
    await this.#plan(asked);
    let accepted = null, done = 0;
    const drawn = (measured = null) => {
      const promptStop = accepted.history_tokens + accepted.prompt_tokens;
      const total = Math.max(done, promptStop + asked.maxTokens);
      this.#memory.show(accepted.recipe, { done, total, promptStop, continues: asked.continues }, measured);
    };
    for await (const event of api.chat(asked.body, asked.headers, this.#running.signal)) {
      if (event.kind === "accepted") {
        ({ accepted } = event);
        this.#reply.accepted(accepted);
      } else if (event.kind === "prefill") {
        ({ done } = event);
        this.#reply.prefill(event.done, event.total);
        drawn();
      } else if (event.kind === "text") {
        this.#reply.text(event.text);
      } else {
        // The last token is sampled, and has no keys and values yet.
        done = accepted.history_tokens + accepted.prompt_tokens + Math.max(0, event.finish.usage.generated_tokens - 1);
        this.#reply.finish(event.finish);
        drawn(event.finish.kv_memory);
      }
    }
    if (accepted?.session_id) {
      this.#form.offerSession(accepted.session_id);
      await this.#sessions.refresh();
    }
  }
}

async function open() {
  try {
    const [info, recipes] = await Promise.all([api.info(), api.recipes()]);
    byId("served").replaceChildren(element("strong", {}, info.model), ` on ${info.device}, up to ${count(info.max_model_tokens)} tokens`);
    new Console(info, recipes).start();
    offerKey(false);
  } catch (error) {
    if (error.code === "invalid_api_key") offerKey(true);
    else tell(byId("served"), `The service does not answer: ${error.message}`);
  }
}

await open();
