// One question and its answer on the page.

import { announce, el, setText } from "./dom.js";
import { count, plural, seconds, short } from "./format.js";
import { showProse } from "./prose.js";

/** A turn. `actions`: retry(), stop(), passages(turn, button). */
export class TurnView {
  #text = el("div", { class: "prose" });
  #wait = el("p", { class: "wait quiet", hidden: true });
  #error = el("div", { class: "failure", role: "group", "aria-label": "Error", hidden: true });
  #meta = el("p", { class: "meta" });
  #buttons = el("div", { class: "buttons", hidden: true });
  #passages;
  #copy;
  #retry;
  #turn;

  constructor(turn, actions) {
    this.#turn = turn;
    const names = turn.documents.map(({ name }) => name).join(", ");
    const question = el("div", { class: "question", dir: "auto" }, turn.question);
    this.#passages = el("button", { type: "button", class: "plain small", onclick: () => actions.passages(this.#turn, this.#passages) });
    this.#retry = el("button", { type: "button", class: "plain small", onclick: () => actions.retry() }, "Try again");
    this.#copy = el("button", { type: "button", class: "plain small", onclick: () => this.#toClipboard() }, "Copy");
    this.#buttons.append(this.#passages, this.#copy, this.#retry);
    const answer = el("div", { class: "answer" }, this.#wait, this.#text, this.#error, this.#meta, this.#buttons);
    const about = names && el("p", { class: "about quiet" }, `about ${names}`);
    this.element = el("article", { class: "turn", "aria-label": `Question: ${turn.question.slice(0, 80)}` }, about || null, question, answer);
  }

  /** Show the turn as it is now; only the last one can be tried again. */
  show(turn, { last }) {
    this.#turn = turn;
    const { answer } = turn;
    const live = ["waiting", "streaming", "busy"].includes(answer.state);
    this.element.dataset.state = answer.state;
    this.element.setAttribute("aria-busy", String(live));
    showProse(this.#text, answer.text);
    this.#showWait(answer);
    this.#showError(answer);
    setText(this.#meta, live ? "" : metaOf(answer));
    this.#buttons.hidden = live;
    this.#copy.hidden = !answer.text;
    this.#retry.hidden = !last;
    const passages = answer.hsokv?.passages?.length ?? 0;
    this.#passages.hidden = !passages;
    setText(this.#passages, plural(passages, "passage"));
  }

  #showWait({ state, text, busyS, message }) {
    const words = state === "busy" ? `${message} Trying again in ${busyS} s.` : "Reading";
    this.#wait.hidden = !(state === "busy" || (state === "waiting" && !text));
    setText(this.#wait, words);
  }

  #showError({ state, error }) {
    this.#error.hidden = state !== "failed";
    if (state === "failed") this.#error.replaceChildren(el("p", {}, error));
  }

  async #toClipboard() {
    try {
      await navigator.clipboard.writeText(this.#turn.answer.text);
      announce("Copied.");
    } catch {
      announce("The browser does not let this page copy; select the text instead.");
    }
  }
}

function metaOf({ state, usage, hsokv, speed, finish }) {
  const parts = [];
  if (state === "stopped") parts.push("stopped");
  if (finish === "length") parts.push("ended at the limit of tokens");
  if (finish === "window") parts.push("ended at the model's window");
  if (usage) parts.push(`${plural(usage.completion_tokens, "token")} from ${count(usage.prompt_tokens)}`);
  if (hsokv?.cached_tokens) parts.push(`${count(hsokv.cached_tokens)} read before`);
  if (speed) parts.push(`${short(speed)} tokens/s`);
  if (hsokv?.timing) parts.push(`first after ${seconds(hsokv.timing.first_token_s)}`);
  return parts.join(" · ");
}
