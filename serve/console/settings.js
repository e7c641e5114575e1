// The switch "Unlimited context", how it reads and how it answers.

import { callJson } from "./api.js";
import { byId, el } from "./dom.js";
import { buildForm } from "./form.js";
import { model } from "./model.js";

const FORMS = [
  { form: "context-form", part: "long_context", state: "longContext" },
  { form: "answer-form", part: "sampling", state: "sampling" },
];

let loaded = false;

/** Whether a question may pass the model's window: as switched, else as the server does by itself. */
export const isUnlimited = (state) => state.unlimited ?? model.unlimited ?? true;

/** Wire the switch. */
export function startSettings(store) {
  const box = byId("unlimited");
  store.subscribe(() => (box.checked = isUnlimited(store.value)));
  box.checked = isUnlimited(store.value);
  box.addEventListener("change", () => store.update({ unlimited: box.checked }));
}

/** Make the forms that the server describes, once. Raises ApiError. */
export async function loadForms(store) {
  if (loaded) return;
  const schema = await callJson("console/schema");
  loaded = true;
  for (const { form, part, state } of FORMS) showForm(store, byId(form), schema[part], state);
}

function showForm(store, form, schema, state) {
  buildForm(form, schema, store.value[state], (name, value) => {
    const { [name]: _, ...rest } = store.value[state];
    store.update({ [state]: value === undefined ? rest : { ...rest, [name]: value } });
  });
  const reset = () => {
    store.update({ [state]: {} });
    showForm(store, form, schema, state);
    form.querySelector("input, select").focus();
  };
  form.append(el("button", { type: "button", class: "plain small", onclick: reset }, "Back to the server's"));
}

/** Return the part of a request that the settings make. */
export function requestSettings(state) {
  const on = { enabled: true, passages: true, ...state.longContext };
  return { ...state.sampling, long_context: isUnlimited(state) ? on : { enabled: false } };
}
