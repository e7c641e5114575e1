// The console: puts the parts together.

import { Chat } from "./chat.js";
import { startComposer } from "./composer.js";
import { Documents } from "./documents.js";
import { byId } from "./dom.js";
import { closeAll, openPassages, startDrawers } from "./drawers.js";
import { startDrop } from "./drop.js";
import { onKey, startKeyDialog } from "./keydialog.js";
import { Log } from "./log.js";
import { loadModel } from "./model.js";
import { clearNotice, notice } from "./notices.js";
import { showPassages } from "./passages.js";
import { loadForms, startSettings } from "./settings.js";
import { startStatus } from "./status.js";
import { Store } from "./store.js";

const store = new Store(localStorage, () => notice("full", "The browser keeps no more: a reload loses the newest messages. New chat makes room."));
const documents = new Documents(store);
const chat = new Chat(store, documents);
const log = new Log(store, {
  retry: () => chat.retry(),
  passages: (turn, button) => {
    showPassages(turn, { documentOf: (id) => documents.get(id), close: closeAll });
    openPassages(button);
  },
});

startKeyDialog();
startDrawers();
startDrop(documents);
startSettings(store);
startComposer({ store, chat, documents, log });

byId("new-chat").addEventListener("click", () => {
  chat.clear();
  closeAll();
  byId("message").focus();
});

/** What needs the server is fetched now, and again when it comes back or another key is given. */
async function load(cause, run) {
  try {
    await run();
    clearNotice(cause);
  } catch (error) {
    if (["gone", "key"].includes(error.kind)) return; // the status says so, and calls again when that is over
    notice(cause, error.message, { label: "Try again", run: () => load(cause, run) });
  }
}

const loadOwn = () => {
  load("model", async () => (await loadModel(), store.update({})));
  load("documents", () => documents.load());
};
const loadAll = () => (loadOwn(), load("settings", () => loadForms(store)));

onKey(loadOwn);
startStatus(loadAll);
loadAll();
byId("message").focus({ preventScroll: true });
