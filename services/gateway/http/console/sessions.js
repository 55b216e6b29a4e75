// The list of sessions: continue, fork, delete.

import * as api from "./api.js";
import { byId, element, tell } from "./dom.js";
import { ago, bytes, plural } from "./format.js";

export class Sessions {
  #form;

  constructor(form) {
    this.#form = form;
    byId("sessions-refresh").addEventListener("click", () => this.refresh());
    byId("confirm-no").addEventListener("click", () => byId("confirm").close());
  }

  async refresh(said = "") {
    try {
      const { sessions } = await api.sessions();
      byId("session-list").replaceChildren(...sessions.map((session) => this.#item(session)));
      tell(byId("sessions-text"), said || (sessions.length ? "" : "None yet. Ask with “New session” to keep a conversation."));
    } catch (error) {
      tell(byId("sessions-text"), `Cannot list sessions: ${error.message}`);
    }
  }

  #item(session) {
    const id = session.session_id;
    const about = `${plural(session.num_turns, "turn")}, ${plural(session.num_tokens, "token")}, ${session.recipe_name}, ${bytes(Number(session.kv_bytes))}, ${ago(Date.now() / 1000 - session.updated_at_s)}`;
    const button = (name, act) => element("button", { type: "button", class: "small", "aria-label": `${name} session ${id}`, onclick: act }, name);
    return element("li", { "data-session": id },
      element("div", { class: "about" }, element("span", { class: "id" }, id), element("span", { class: "hint" }, about)),
      element("div", { class: "row" },
        button("Continue", () => this.#form.continueIn(id)),
        button("Fork", () => this.#change(async () => `Forked to ${(await api.forkSession(id)).session_id}.`)),
        button("Delete", () => this.#confirm(id))));
  }

  #confirm(id) {
    tell(byId("confirm-text"), `Delete session ${id}? Its conversation and saved KV are gone then.`);
    byId("confirm-yes").onclick = () => {
      byId("confirm").close();
      this.#change(async () => {
        await api.deleteSession(id);
        this.#form.forgetSession(id);
        return "Deleted.";
      });
    };
    byId("confirm").showModal();
  }

  // The list is drawn anew, and the button that was pressed may be gone: focus stays in this section.
  async #change(act) {
    let said;
    try {
      said = await act();
    } catch (error) {
      said = error.message;
    }
    await this.refresh(said);
    if (document.activeElement === document.body) byId("sessions-refresh").focus();
  }
}
