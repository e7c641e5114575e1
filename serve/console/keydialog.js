// Asks for the API key; who needs it calls again when it is there.

import { key } from "./api.js";
import { byId } from "./dom.js";
import { clearNotice, notice } from "./notices.js";

const ASK = "This server answers only those who have a key. Whoever runs it can give you one.";
const EXPLAIN = "It goes with every call. Leave it empty to send none.";
const listeners = [];
let declined = false;

/** Call `listener()` whenever another key is in use. */
export const onKey = (listener) => listeners.push(listener);

/** Ask for the key because of the ApiError `error`; once, until another key is given. */
export function askForKey(error) {
  if (!declined && !byId("key-dialog").open) openDialog(key.get() ? error.message : ASK);
}

/** Wire the dialog and the button that opens it. */
export function startKeyDialog() {
  const dialog = byId("key-dialog");
  byId("open-key").addEventListener("click", () => openDialog(EXPLAIN));
  byId("key-cancel").addEventListener("click", () => dialog.close("cancel"));
  dialog.addEventListener("cancel", () => (dialog.returnValue = "cancel"));
  dialog.addEventListener("close", () => (dialog.returnValue === "use" ? undefined : decline()));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault(); // nothing is sent: the form is only the dialog's Enter key
    dialog.close("use");
    use(byId("key").value.trim());
  });
}

function openDialog(reason) {
  byId("key-reason").textContent = reason;
  byId("key").value = key.get() ?? "";
  byId("key-dialog").dataset.asked = String(reason !== EXPLAIN);
  byId("key-dialog").showModal();
  byId("key").select();
}

function use(value) {
  declined = false;
  key.set(value);
  clearNotice("key");
  for (const listener of listeners) listener();
}

function decline() {
  if (byId("key-dialog").dataset.asked !== "true") return;
  declined = true;
  notice("key", "This server asks for an API key.", { label: "Enter key", run: () => openDialog(EXPLAIN) });
}
