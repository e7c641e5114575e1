// The conversation: asks, follows the stream, stops, tries again.

import { ApiError, stream } from "./api.js";
import { announce } from "./dom.js";
import { askForKey } from "./keydialog.js";
import { loadModel, model } from "./model.js";
import { isUnlimited, requestSettings } from "./settings.js";
import { pause } from "./upload.js";

const TRIES = 5;
const LIVE = ["waiting", "streaming", "busy"];

/** The turns of the store, one of which at most is being answered. */
export class Chat {
  #store;
  #documents;
  #running = null; // AbortController

  constructor(store, documents) {
    this.#store = store;
    this.#documents = documents;
  }

  get busy() {
    return this.#running !== null;
  }

  /** Ask `question` about the chosen documents. */
  async ask(question) {
    const documents = isUnlimited(this.#store.value) ? this.#documents.chosen.map(({ id, name }) => ({ id, name })) : [];
    const turn = { id: newId(), question, documents, answer: { state: "waiting", text: "" } };
    this.#store.update({ turns: [...this.#store.value.turns, turn], draft: "" });
    await this.#answer(turn);
  }

  /** Ask the last question again. */
  async retry() {
    const turn = this.#store.value.turns.at(-1);
    if (turn && !this.busy) await this.#answer(turn);
  }

  /** End the answer that is being written; what is there stays. */
  stop() {
    this.#running?.abort();
  }

  clear() {
    this.stop();
    this.#store.update({ turns: [] });
  }

  async #answer(turn) {
    const running = (this.#running = new AbortController());
    this.#change(turn.id, { state: "waiting", text: "", error: null, usage: null, hsokv: null, speed: null, finish: null });
    try {
      if (model.id === null) await loadModel();
      await this.#untilServed(turn, running.signal);
      this.#change(turn.id, { state: "done" });
      announce(`Answer: ${this.#turn(turn.id)?.answer.text}`);
    } catch (error) {
      this.#fail(turn.id, error);
    } finally {
      if (this.#running === running) this.#running = null;
      this.#store.update({}); // the send button follows
    }
  }

  #fail(id, error) {
    if (error.name === "AbortError") {
      this.#change(id, { state: "stopped" });
      return announce("Stopped.");
    }
    if (!(error instanceof ApiError)) console.error(error);
    if (error.kind === "key") askForKey(error);
    this.#change(id, { state: "failed", error: error.message });
    announce(`The answer failed: ${error.message}`);
  }

  async #untilServed(turn, signal) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.#follow(turn, signal);
      } catch (error) {
        const begun = this.#turn(turn.id)?.answer.text;
        if (error.kind !== "busy" || begun || tries === TRIES) throw error;
        await this.#wait(turn.id, error, signal);
      }
    }
  }

  async #wait(id, error, signal) {
    for (let left = Math.ceil(error.retryAfterS ?? 2); left > 0; left -= 1) {
      this.#change(id, { state: "busy", message: error.message, busyS: left });
      await pause(1, signal);
    }
    this.#change(id, { state: "waiting" });
  }

  async #follow(turn, signal) {
    let text = "";
    let firstAt = null;
    let ended = false;
    for await (const chunk of stream("v1/chat/completions", { method: "POST", json: this.#request(turn), signal })) {
      const [choice] = chunk.choices;
      if (choice?.delta?.content) {
        firstAt ??= performance.now();
        text += choice.delta.content;
        this.#change(turn.id, { state: "streaming", text });
      }
      if (choice?.finish_reason) {
        ended = true;
        this.#change(turn.id, { finish: choice.finish_reason });
      }
      if (chunk.usage) this.#change(turn.id, { usage: chunk.usage, speed: speedOf(chunk.usage, firstAt) });
      if (chunk.hsokv) this.#change(turn.id, { hsokv: chunk.hsokv });
    }
    if (!ended) throw new ApiError("broken", "The answer broke off: the server closed the connection.");
  }

  #request(turn) {
    const state = this.#store.value;
    const before = state.turns.slice(0, state.turns.findIndex(({ id }) => id === turn.id)).filter(({ answer }) => answer.text);
    const messages = before.flatMap(({ question, answer }) => [message("user", question), message("assistant", answer.text)]);
    return {
      model: model.id,
      messages: [...messages, message("user", turn.question)],
      stream: true,
      stream_options: { include_usage: true },
      ...(turn.documents.length ? { documents: turn.documents.map(({ id }) => id) } : {}),
      ...requestSettings(state),
    };
  }

  #turn(id) {
    return this.#store.value.turns.find((turn) => turn.id === id);
  }

  #change(id, change) {
    const { turns } = this.#store.value;
    this.#store.update({ turns: turns.map((turn) => (turn.id === id ? { ...turn, answer: { ...turn.answer, ...change } } : turn)) });
  }
}

const newId = () => `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;

const message = (role, content) => ({ role, content });

/** Tokens a second behind the first, where there were enough to tell. */
function speedOf(usage, firstAt) {
  if (firstAt === null || usage.completion_tokens < 3) return null;
  return ((usage.completion_tokens - 1) * 1000) / Math.max(1, performance.now() - firstAt);
}

/** Whether an answer in this state is still to come. */
export const isLive = (state) => LIVE.includes(state);
