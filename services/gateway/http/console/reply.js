// What is shown of one turn: progress, text, and what was predicted against what was measured.

import { byId, element, show, tell } from "./dom.js";
import { count, ms, plural, quality } from "./format.js";

export class Reply {
  #accepted = null;
  #numChunks = 0;

  begin() {
    byId("answer").textContent = "";
    byId("answer").setAttribute("aria-busy", "true"); // read out as a whole, when it is whole
    show(byId("problem"), false);
    show(byId("ran"), false);
    this.#progress(0, 1, "");
    this.status("Planning…");
  }

  status(text) {
    tell(byId("status"), text);
  }

  accepted(accepted) {
    this.#accepted = accepted;
    show(byId("ran"));
    tell(byId("ran-recipe"), accepted.recipe.name);
    this.#verdict(accepted.predicted_to_meet ? "predicted to meet its aim" : "predicted to miss its aim", accepted.predicted_to_meet);
    tell(byId("ran-reason"), accepted.reason);
    tell(byId("ran-usage"), "");
    this.#figures(null);
    this.status(`Reading ${plural(accepted.prompt_tokens + accepted.history_tokens, "token")} under ${accepted.recipe.name}…`);
  }

  prefill(done, total) {
    this.#progress(done, total, `${count(done)} of ${count(total)} tokens`);
  }

  text(piece) {
    if (this.#numChunks++ === 0) this.status("Answering…");
    const answer = byId("answer");
    const atEnd = answer.scrollTop + answer.clientHeight >= answer.scrollHeight - 8;
    answer.append(piece);
    if (atEnd) answer.scrollTop = answer.scrollHeight;
  }

  finish(finish) {
    const { usage, timings, session } = finish;
    this.#verdict(finish.sla_met ? "SLA met" : `SLA missed: ${finish.sla_misses.join("; ")}`, finish.sla_met);
    this.#figures(timings);
    const ended = finish.reason === "FINISH_REASON_LENGTH" ? "stopped at the most tokens allowed" : "ended by itself";
    const parts = [
      `${plural(usage.generated_tokens, "token")} generated, ${count(usage.computed_tokens)} computed, ${count(usage.restored_tokens)} restored`,
      ended, `queue ${ms(timings.queue_ms)}`, `in all ${ms(timings.total_ms)}`,
    ];
    if (session) parts.push(session.saved ? `session saved (version ${session.version}; history ${session.history})` : `session not saved: ${session.error}`);
    tell(byId("ran-usage"), `${parts.join(" · ")}.`);
    this.status("Done.");
  }

  end(message = null) {
    this.#numChunks = 0;
    byId("answer").setAttribute("aria-busy", "false");
    if (message !== null) this.status(message);
  }

  problem(error) {
    const again = error.retryAfterMs ? ` Try again in ${ms(error.retryAfterMs)}.` : "";
    tell(byId("problem"), `${error.message}${again}`);
    show(byId("problem"));
  }

  #progress(done, total, text) {
    byId("prefill").max = Math.max(1, total);
    byId("prefill").value = done;
    tell(byId("progress-text"), text);
  }

  #verdict(text, good) {
    tell(byId("ran-verdict"), text);
    byId("ran-verdict").className = `verdict ${good ? "met" : "missed"}`;
  }

  #figures(timings) {
    const { objective, prediction } = this.#accepted;
    const rows = [
      ["Time to first token", ms(objective.ttft_ms), ms(prediction.ttft_ms), timings ? ms(timings.ttft_ms) : "…"],
      ["Time per further token", ms(objective.tpot_ms), ms(prediction.tpot_ms), timings ? ms(timings.tpot_ms) : "…"],
      ["Quality", quality(objective.min_quality), quality(prediction.quality), "–"],
    ];
    byId("ran-figures").replaceChildren(...rows.map(([name, ...values]) =>
      element("tr", {}, element("th", { scope: "row" }, name), ...values.map((value) => element("td", {}, value)))));
  }
}
