// Lines above the message box that say what is wrong with the server, one per cause.

import { announce, byId, el } from "./dom.js";

const shown = new Map();

/** Show `text` for `cause`, in place of what it said before; `action` is {label, run}. */
export function notice(cause, text, action = null) {
  if (shown.get(cause)?.dataset.text === text) return;
  clearNotice(cause);
  const line = el(
    "div",
    { class: "notice", "data-cause": cause, "data-text": text },
    el("p", {}, text),
    action && el("button", { type: "button", class: "plain", onclick: action.run }, action.label),
  );
  shown.set(cause, line);
  byId("notices").append(line);
  announce(text);
}

/** Take the notice of `cause` away. */
export function clearNotice(cause) {
  shown.get(cause)?.remove();
  shown.delete(cause);
}
