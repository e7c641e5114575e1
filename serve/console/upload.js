// Sends a file in pieces by its digest: what breaks off goes on where it ended, also after the page was closed.

import { ApiError, call, callJson } from "./api.js";

const PIECE_BYTES = 1 << 20;
const TRIES = 5;
const PASSING = ["gone", "broken", "busy"];
const PAGES = /\.(jsonl|ndjson)$/i;

const typeOf = (file) => (PAGES.test(file.name) ? "application/x-ndjson" : "text/plain");

/** Send `file`; `onSent(bytes)` follows it. Returns the document. Raises ApiError. */
export async function upload(file, { onSent, signal }) {
  if (!file.size) throw new ApiError("invalid", "The file is empty.");
  if (!crypto.subtle) return whole(file, signal); // browsers have digests on https and localhost only
  const digest = await sha256(file);
  const about = { digest, bytes: file.size, name: file.name, content_type: typeOf(file) };
  const begin = () => callJson("v1/documents/uploads", { method: "POST", json: about, signal }); // or finds it again
  let state = null;
  let tries = 0;
  while (!state?.document) {
    const went = state !== null;
    try {
      state = went ? await sendPiece(file, digest, state.offset, signal) : await begin();
      if (went) tries = 0;
      onSent(state.offset);
    } catch (error) {
      tries += 1;
      if (!PASSING.includes(error.kind) || tries > TRIES) throw error;
      await pause(error.retryAfterS ?? 2 ** tries / 2, signal);
      state = null; // ask the server how far it is
    }
  }
  return state.document;
}

async function whole(file, signal) {
  const path = `v1/documents?name=${encodeURIComponent(file.name)}`;
  return callJson(path, { method: "POST", body: file, headers: { "Content-Type": typeOf(file) }, signal });
}

async function sendPiece(file, digest, offset, signal) {
  const headers = { "Upload-Offset": String(offset), "Content-Type": "application/octet-stream" };
  const body = file.slice(offset, offset + PIECE_BYTES);
  return (await call(`v1/documents/uploads/${digest}`, { method: "PATCH", body, headers, signal })).json();
}

async function sha256(file) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Wait; raises AbortError as soon as `signal` says so. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    };
    if (signal?.aborted) return stop();
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    signal?.addEventListener("abort", stop, { once: true });
  });
}
