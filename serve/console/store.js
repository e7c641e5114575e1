// What survives a reload: the conversation, the draft, the settings and the chosen documents. Never the key.

const NAME = "hsokv.console";
const VERSION = 1;
const SAVE_AFTER_MS = 250;

const EMPTY = {
  turns: [], // {id, question, documents: [{id, name}], answer: {state, text, error, usage, hsokv, ...}}
  draft: "",
  chosen: [], // ids of documents
  unlimited: null, // null: what the server does by itself
  longContext: {},
  sampling: {},
};

/** State with listeners; `onFull` is called once where the browser's storage has no more room. */
export class Store {
  #storage;
  #value;
  #timer = null;
  #listeners = [];
  #onFull;

  constructor(storage, onFull) {
    this.#storage = storage;
    this.#onFull = onFull;
    this.#value = { ...EMPTY, ...load(storage) };
    addEventListener("pagehide", () => this.save());
  }

  get value() {
    return this.#value;
  }

  /** Merge `change` into the state, tell the listeners, save soon. */
  update(change) {
    this.#value = { ...this.#value, ...change };
    this.#timer ??= setTimeout(() => this.save(), SAVE_AFTER_MS);
    for (const listener of this.#listeners) listener(this.#value, change);
  }

  /** Call `listener(state, change)` after every update. */
  subscribe(listener) {
    this.#listeners.push(listener);
  }

  save() {
    clearTimeout(this.#timer);
    this.#timer = null;
    try {
      this.#storage.setItem(NAME, JSON.stringify({ version: VERSION, ...this.#value }));
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
      this.#onFull?.();
      this.#onFull = null;
    }
  }
}

function load(storage) {
  const text = storage.getItem(NAME);
  if (text === null) return {};
  try {
    const { version, ...value } = JSON.parse(text);
    return version === VERSION ? { ...value, turns: value.turns.map(settled) } : {};
  } catch (error) {
    console.warn(`the console's saved state cannot be read and is left out: ${error.message}`);
    return {};
  }
}

/** An answer that was being written when the page went away has stopped there. */
function settled(turn) {
  const live = ["waiting", "streaming", "busy"].includes(turn.answer.state);
  return live ? { ...turn, answer: { ...turn.answer, state: "stopped" } } : turn;
}
