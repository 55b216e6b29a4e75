// The API key: kept for this tab only, sent with every request, shown nowhere.

import { byId, show, tell } from "./dom.js";

const NAME = "swaa-api-key";

export function authorization() {
  const key = sessionStorage.getItem(NAME);
  return key === null ? {} : { authorization: `Bearer ${key}` };
}

// Shows the field where a key is needed, or in use; a new key begins anew.
export function offerKey(isRefused) {
  const isKept = sessionStorage.getItem(NAME) !== null;
  show(byId("key-form"), isRefused || isKept);
  if (isRefused) {
    tell(byId("served"), isKept ? "The service does not take this API key." : "The service asks for an API key.");
    byId("key").focus();
  }
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const key = byId("key").value.trim();
    if (key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
    location.reload();
  });
}
