// Follows what is being encoded. A browser opens six connections to a server: few are for this, the rest is asked in turn.

import { callJson, stream } from "./api.js";
import { pause } from "./upload.js";

const STREAMS = 2;
const ASK_EVERY_S = 2;
const PASSING = ["gone", "broken", "busy", "server"];

/** Whether a document in this state is on its way to another. */
export const isUnderWay = (state) => state === "queued" || state === "encoding";

/** Tells `onProgress(id, progress)` until each document is ready or has failed, `onError(id, message)` where that cannot be known. */
export class Watcher {
  #onProgress;
  #onError;
  #stops = new Map(); // id -> AbortController
  #streams = 0;

  constructor(onProgress, onError) {
    this.#onProgress = onProgress;
    this.#onError = onError;
  }

  async follow(id) {
    if (this.#stops.has(id)) return;
    const stop = new AbortController();
    this.#stops.set(id, stop);
    try {
      while (await this.#goOn(id, stop.signal));
    } catch (error) {
      if (error.name !== "AbortError") this.#onError(id, error.message);
    }
    if (this.#stops.get(id) === stop) this.#stops.delete(id);
  }

  forget(id) {
    this.#stops.get(id)?.abort();
    this.#stops.delete(id);
  }

  /** Follow for a while; return whether there is more to come. */
  async #goOn(id, signal) {
    try {
      if (this.#streams < STREAMS) return await this.#listen(id, signal);
      if (!this.#tell(id, await callJson(`v1/documents/${id}`, { signal }))) return false;
    } catch (error) {
      if (!PASSING.includes(error.kind)) throw error;
    }
    await pause(ASK_EVERY_S, signal);
    return true;
  }

  async #listen(id, signal) {
    this.#streams += 1;
    try {
      for await (const progress of stream(`v1/documents/${id}/events`, { signal })) if (!this.#tell(id, progress)) break;
      return this.#tell(id, await callJson(`v1/documents/${id}`, { signal }));
    } finally {
      this.#streams -= 1;
    }
  }

  #tell(id, progress) {
    this.#onProgress(id, progress);
    return isUnderWay(progress.state);
  }
}
