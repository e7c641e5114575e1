// The model that is served.

import { callJson } from "./api.js";
import { byId, setText } from "./dom.js";
import { count } from "./format.js";

/** What GET /v1/models says of it; empty until then. */
export const model = { id: null, window_tokens: null, unlimited: null };

/** Ask the server. Raises ApiError. */
export async function loadModel() {
  const { data } = await callJson("v1/models");
  Object.assign(model, data[0]);
  const window = model.window_tokens ? `, window of ${count(model.window_tokens)} tokens` : "";
  setText(byId("model"), `${model.id}${window}`);
}
