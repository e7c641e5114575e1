// Calls of the server: the key goes along, and every failure is an ApiError that says what to do.

import { events } from "./sse.js";

const KEY = "hsokv.key";

/** Types of errors inside a stream, whose status was sent before. */
const KINDS = { rate_limit_error: "busy", authentication_error: "key", invalid_request_error: "invalid" };

/** The API key; only in this tab, never on disk. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** A call that failed. `kind`: gone (no answer), key (401), busy (429), invalid (other 4xx), server (5xx), broken (ended early). */
export class ApiError extends Error {
  constructor(kind, message, { retryAfterS = null, status = null } = {}) {
    super(message);
    this.kind = kind;
    this.retryAfterS = retryAfterS;
    this.status = status;
  }
}

/** Call `path` (relative to the page) and return the response; raises ApiError, or AbortError where `signal` says so. */
export async function call(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const given = { Accept: "application/json", ...headers };
  if (key.get()) given.Authorization = `Bearer ${key.get()}`;
  if (json !== undefined) given["Content-Type"] = "application/json";
  let response;
  try {
    const payload = json === undefined ? body : JSON.stringify(json);
    response = await fetch(new URL(path, document.baseURI), { method, headers: given, body: payload, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw gone();
  }
  if (!response.ok) throw await refused(response);
  return response;
}

/** Call `path` and return the JSON of its answer. */
export const callJson = async (path, options) => (await call(path, options)).json();

/** Yield the JSON of each event that `path` streams. An answer of `[DONE]` ends it. Raises ApiError where the stream carries an error or breaks. */
export async function* stream(path, { headers = {}, ...options } = {}) {
  const response = await call(path, { headers: { ...headers, Accept: "text/event-stream" }, ...options });
  try {
    for await (const data of events(response)) {
      if (data === "[DONE]") return;
      const value = JSON.parse(data);
      if (value.error?.message) throw new ApiError(KINDS[value.error.type] ?? "server", value.error.message);
      yield value;
    }
  } catch (error) {
    if (error instanceof TypeError) throw new ApiError("broken", "The connection broke before the end.");
    throw error;
  }
}

const gone = () => new ApiError("gone", "The server does not answer. It may be starting, or the network is down.");

async function refused(response) {
  const { status } = response;
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  const message = await messageOf(response);
  return new ApiError(kindOf(status), message, { status, retryAfterS: Number.isFinite(wait) ? wait : null });
}

async function messageOf(response) {
  const text = await response.text().catch(() => ""); // the status line stands for a body that broke off
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `The server answered ${response.status} ${response.statusText}`.trim();
  }
}

function kindOf(status) {
  if (status === 401) return "key";
  if (status === 429) return "busy";
  return status >= 400 && status < 500 ? "invalid" : "server";
}
