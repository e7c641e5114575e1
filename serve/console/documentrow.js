// One document in the list: its name, what became of it, how far it is.

import { el, icon, setText } from "./dom.js";
import { bytes, duration, plural } from "./format.js";

const CROSS = "M6 6l8 8M14 6l-8 8";

/** A row. `actions`: choose(wanted), remove(), encode(). */
export class DocumentRow {
  #document;
  #actions;
  #box;
  #meta = el("p", { class: "meta" });
  #bar = el("progress", { max: "1" });
  #left = el("span", { class: "quiet" });
  #way = el("div", { class: "progress", hidden: true }, this.#bar, this.#left);
  #error = el("p", { class: "error", hidden: true });
  #again = el("button", { type: "button", class: "plain small", hidden: true });
  #remove;

  constructor(document, actions) {
    this.#document = document;
    this.#actions = actions;
    const id = `document-${document.id}`;
    this.#box = el("input", { id, type: "checkbox", disabled: !actions.choose, onchange: () => actions.choose(this.#box.checked) });
    const label = actions.choose ? `Delete ${document.name}` : `Stop sending ${document.name}`;
    this.#remove = el("button", { type: "button", class: "plain icon-only", title: label, "aria-label": label }, icon(CROSS));
    this.#remove.addEventListener("click", () => this.#ask());
    this.#again.addEventListener("click", () => this.#actions.encode());
    this.#bar.setAttribute("aria-label", `Progress of ${document.name}`);
    const name = el("label", { for: id, class: "name", title: document.name }, document.name);
    const lines = el("div", { class: "lines" }, name, this.#meta, this.#way, this.#error, this.#again);
    this.element = el("li", { class: "document", "data-state": document.state }, this.#box, lines, this.#remove);
    this.show(document);
  }

  /** Show what has changed. */
  show(change) {
    this.#document = { ...this.#document, ...change };
    const { state, error } = this.#document;
    this.element.dataset.state = state;
    setText(this.#meta, metaOf(this.#document));
    this.#progress();
    if (change.state) this.say(state === "failed" ? (error ?? "It could not be encoded.") : "");
    this.#again.hidden = !(["failed", "stored"].includes(state) && this.#actions.encode);
    setText(this.#again, state === "stored" ? "Encode now" : "Try again");
  }

  check(wanted) {
    this.#box.checked = wanted;
  }

  /** Say what went wrong, something else (`kind` quiet), or nothing. */
  say(text, kind = "error") {
    this.#error.className = `${kind} help`;
    setText(this.#error, text);
    this.#error.hidden = !text;
  }

  /** The file could not be sent. */
  fail(message, retry, remove) {
    this.#actions = { encode: retry, remove };
    this.show({ state: "failed", error: message });
  }

  #progress() {
    const { state, sent, num_bytes: size, tokens_done: done, tokens_total: total, tokens_per_s: speed } = this.#document;
    const part = state === "sending" ? (sent ?? 0) / size : total ? done / total : 0;
    this.#way.hidden = !["sending", "queued", "encoding"].includes(state);
    setText(this.#left, state === "encoding" && speed > 0 ? `${duration((total - done) / speed)} left` : "");
    if (part > 0) this.#bar.value = part;
    else this.#bar.removeAttribute("value");
  }

  /** A document is deleted by a second press; a file being sent stops at once. */
  #ask() {
    if (!this.#actions.choose || this.#remove.dataset.sure === "true") return this.#actions.remove();
    this.#remove.dataset.sure = "true";
    this.#remove.replaceChildren("Delete?");
    const back = () => {
      this.#remove.dataset.sure = "false";
      this.#remove.replaceChildren(icon(CROSS));
    };
    this.#remove.addEventListener("blur", back, { once: true });
  }
}

function metaOf({ state, sent, num_bytes: size, num_tokens: tokens, tokens_done: done, tokens_total: total }) {
  if (state === "sending") return `sending, ${bytes(sent ?? 0)} of ${bytes(size)}`;
  if (state === "queued") return `${bytes(size)}, waits to be encoded`;
  if (state === "encoding" && total) return `${Math.floor((done / total) * 100)} % of ${plural(total, "token")}`;
  if (state === "encoding") return `${bytes(size)}, being encoded`;
  if (state === "ready") return `${plural(tokens ?? total, "token")}, ${bytes(size)}`;
  if (state === "stored") return `${bytes(size)}, encoded at the first question`;
  return bytes(size);
}
