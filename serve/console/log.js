// The turns on the page; it follows the newest text unless the reader has scrolled away.

import { byId, el } from "./dom.js";
import { TurnView } from "./turnview.js";

const NEAR_END = 48; // pixels

/** Shows `store`'s turns; draws at most once a frame. */
export class Log {
  #actions;
  #views = new Map();
  #pinned = true;
  #asked = false;
  #turns = [];

  constructor(store, actions) {
    this.#actions = actions;
    const log = byId("log");
    log.addEventListener("scroll", () => this.#scrolled(log), { passive: true });
    new ResizeObserver(() => this.#follow()).observe(log);
    byId("to-end").addEventListener("click", () => this.toEnd());
    store.subscribe((state) => this.#turns !== state.turns && this.#ask(state.turns));
    this.#ask(store.value.turns);
  }

  /** Go to the newest text and stay there. */
  toEnd() {
    this.#pinned = true;
    this.#follow();
  }

  #ask(turns) {
    this.#turns = turns;
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      this.#draw();
    });
  }

  #draw() {
    const ids = new Set(this.#turns.map(({ id }) => id));
    for (const [id, view] of this.#views) if (!ids.has(id)) (view.element.remove(), this.#views.delete(id));
    this.#turns.forEach((turn, i) => this.#viewOf(turn).show(turn, { last: i === this.#turns.length - 1 }));
    this.#showEmpty();
    this.#follow();
  }

  #viewOf(turn) {
    if (!this.#views.has(turn.id)) {
      this.#views.set(turn.id, new TurnView(turn, this.#actions));
      byId("turns").append(this.#views.get(turn.id).element);
    }
    return this.#views.get(turn.id);
  }

  #showEmpty() {
    const shown = byId("turns").querySelector(".welcome");
    if (this.#turns.length) shown?.remove();
    else if (!shown) byId("turns").append(welcome());
  }

  #scrolled(log) {
    this.#pinned = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END;
    byId("to-end").hidden = this.#pinned;
  }

  #follow() {
    if (this.#pinned) byId("log").scrollTop = byId("log").scrollHeight;
  }
}

const welcome = () =>
  el(
    "div",
    { class: "welcome" },
    el("h2", {}, "Ask about texts of any length"),
    el("p", {}, "Add a document: drop it here, or choose it at the side. It is read once, far past the model's window."),
    el("p", {}, "Ask. Each answer tells which passages it drew on."),
    el("p", {}, "Ask again: what was read before is not read a second time."),
  );
