// The list of documents: dropped, sent, encoded before one's eyes, chosen for questions, deleted.

import { call, callJson } from "./api.js";
import { DocumentRow } from "./documentrow.js";
import { announce, byId } from "./dom.js";
import { plural } from "./format.js";
import { upload } from "./upload.js";
import { isUnderWay, Watcher } from "./watcher.js";

const PAGE = 100;

/** The documents of this key, by id, in the order the server lists them. */
export class Documents {
  #store;
  #rows = new Map(); // id, or `sending:NUMBER` -> DocumentRow
  #known = new Map(); // id -> document
  #watcher = new Watcher(
    (id, progress) => this.#progress(id, progress),
    (id, message) => this.#rows.get(id)?.say(message),
  );
  #sent = 0;
  #queue = Promise.resolve();

  constructor(store) {
    this.#store = store;
    store.subscribe((state, change) => change.chosen && this.#showChosen());
  }

  /** The chosen documents that are there. */
  get chosen() {
    return this.#store.value.chosen.map((id) => this.#known.get(id)).filter(Boolean);
  }

  /** What is known of a document; undefined where it is gone. */
  get(id) {
    return this.#known.get(id);
  }

  /** Fetch the list anew, and follow what is being encoded. Raises ApiError. */
  async load() {
    const found = await fetchAll();
    const ids = new Set(found.map(({ id }) => id));
    for (const id of this.#known.keys()) if (!ids.has(id)) this.#forget(id);
    for (const document of found) this.#take(document);
    this.#order([...ids]);
    this.#store.update({ chosen: this.#store.value.chosen.filter((id) => ids.has(id)) });
    this.#showEmpty();
  }

  /** Send files one after the other, each with a row of its own at once. */
  add(files) {
    for (const file of files) this.#send(file);
  }

  choose(id, wanted) {
    const others = this.#store.value.chosen.filter((one) => one !== id);
    this.#store.update({ chosen: wanted ? [...others, id] : others });
  }

  #send(file) {
    const id = `sending:${(this.#sent += 1)}`;
    const stop = new AbortController();
    const row = new DocumentRow({ id, name: file.name, state: "sending", num_bytes: file.size }, { remove: () => stop.abort() });
    this.#place(id, row);
    this.#queue = this.#queue.then(() => this.#sendNow(id, file, row, stop.signal));
  }

  async #sendNow(id, file, row, signal) {
    try {
      const document = await upload(file, { signal, onSent: (sent) => row.show({ sent }) });
      this.#drop(id);
      this.#take(document);
      this.choose(document.id, true);
      const known = document.name !== file.name && `${file.name} has the same text as ${document.name}, which is here already.`;
      if (known) this.#rows.get(document.id).say(known, "quiet");
      announce(known || `${document.name} is here.`);
    } catch (error) {
      if (error.name === "AbortError") return this.#drop(id);
      if (!error.kind) console.error(error);
      row.fail(error.message, () => (this.#drop(id), this.#send(file)), () => this.#drop(id));
      announce(`${file.name}: ${error.message}`);
    }
  }

  /** Show `document` as it is now, and follow it until it is ready or has failed. */
  #take(document) {
    this.#known.set(document.id, document);
    if (!this.#rows.has(document.id)) this.#place(document.id, this.#rowOf(document));
    this.#rows.get(document.id).show(document);
    this.#rows.get(document.id).check(this.#store.value.chosen.includes(document.id));
    if (isUnderWay(document.state)) this.#watcher.follow(document.id);
  }

  #rowOf(document) {
    const { id } = document;
    return new DocumentRow(document, {
      choose: (wanted) => this.choose(id, wanted),
      remove: () => this.#orSay(id, () => this.#delete(id)),
      encode: () => this.#orSay(id, async () => this.#take(await callJson(`v1/documents/${id}/encode`, { method: "POST" }))),
    });
  }

  async #delete(id) {
    const { name } = this.#known.get(id);
    await call(`v1/documents/${id}`, { method: "DELETE" });
    this.#forget(id);
    this.choose(id, false);
    announce(`${name} is deleted.`);
  }

  async #orSay(id, run) {
    try {
      await run();
    } catch (error) {
      this.#rows.get(id)?.say(error.message);
      announce(error.message);
    }
  }

  #progress(id, progress) {
    const before = this.#known.get(id);
    const document = { ...before, ...progress };
    this.#known.set(id, document);
    this.#rows.get(id)?.show(document);
    if (before.state === document.state) return;
    if (document.state === "ready") announce(`${document.name} is encoded: ${plural(document.tokens_total, "token")}.`);
    if (document.state === "failed") announce(`${document.name} could not be encoded: ${document.error}`);
    this.#store.update({}); // the message box shows the state too
  }

  #place(id, row) {
    this.#rows.set(id, row);
    byId("documents").prepend(row.element);
    this.#showEmpty();
  }

  /** Put the rows as the server lists them, behind what is being sent; a row that is in its place keeps the focus. */
  #order(ids) {
    const sending = [...this.#rows.keys()].filter((id) => id.startsWith("sending:"));
    const list = byId("documents");
    [...sending.reverse(), ...ids].forEach((id, i) => {
      const { element } = this.#rows.get(id);
      if (list.children[i] !== element) list.insertBefore(element, list.children[i]);
    });
  }

  #drop(id) {
    this.#rows.get(id)?.element.remove();
    this.#rows.delete(id);
    this.#showEmpty();
  }

  #forget(id) {
    this.#watcher.forget(id);
    this.#known.delete(id);
    this.#drop(id);
  }

  #showChosen() {
    const { chosen } = this.#store.value;
    for (const [id, row] of this.#rows) row.check(chosen.includes(id));
  }

  #showEmpty() {
    byId("no-documents").hidden = this.#rows.size > 0;
  }
}

async function fetchAll() {
  const found = [];
  let page = { has_more: true, last_id: null };
  while (page.has_more) {
    const after = page.last_id ? `&after=${encodeURIComponent(page.last_id)}` : "";
    page = await callJson(`v1/documents?limit=${PAGE}${after}`);
    found.push(...page.data);
  }
  return found;
}
