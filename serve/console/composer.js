// The message box: grows with its text, keeps the draft, shows the chosen documents.

import { byId, el, icon, setText } from "./dom.js";
import { isUnlimited } from "./settings.js";

const CROSS = "M6 6l8 8M14 6l-8 8";

/** Wire the box to `chat`. */
export function startComposer({ store, chat, documents, log }) {
  const box = byId("message");
  box.value = store.value.draft;
  grow(box);
  box.addEventListener("input", () => (grow(box), store.update({ draft: box.value })));
  box.addEventListener("keydown", (event) => onKey(event, chat));
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (chat.busy) return chat.stop();
    const question = box.value.trim();
    if (!question) return box.focus();
    box.value = "";
    grow(box);
    log.toEnd();
    chat.ask(question);
  });
  addEventListener("keydown", (event) => event.key === "Escape" && !event.defaultPrevented && !openDialog() && chat.stop());
  const show = () => (showSend(chat), showChosen(store, documents));
  store.subscribe(show);
  show();
}

const openDialog = () => document.querySelector("dialog[open]");

/** Enter sends, unless an input method is composing a character or an answer is being written. */
function onKey(event, chat) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!chat.busy) byId("composer").requestSubmit();
}

function grow(box) {
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

function showSend(chat) {
  const send = byId("send");
  setText(send.firstElementChild, chat.busy ? "Stop" : "Send");
  send.dataset.busy = String(chat.busy);
}

let shown = "";

function showChosen(store, documents) {
  const on = isUnlimited(store.value);
  const chips = documents.chosen.map(({ id, name, state }) => ({ id, name, state }));
  const now = JSON.stringify([on, chips]);
  if (now === shown) return;
  shown = now;
  byId("chosen").replaceChildren(...chips.map((chip) => chipOf(chip, on, documents)));
}

function chipOf({ id, name, state }, on, documents) {
  const remove = el(
    "button",
    { type: "button", class: "plain icon-only", "aria-label": `Ask without ${name}`, onclick: () => documents.choose(id, false) },
    icon(CROSS),
  );
  const note = on ? (state === "encoding" || state === "queued" ? "being encoded" : "") : "not read: unlimited context is off";
  return el("li", { class: "chip", "data-off": !on }, el("span", { class: "chip-name" }, name), note && el("span", { class: "quiet" }, note), remove);
}
