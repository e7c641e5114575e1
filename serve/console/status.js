// Asks the server how it is, every two seconds while the page is seen; draws it, and says when it is gone.

import { callJson } from "./api.js";
import { Chart } from "./chart.js";
import { byId, el, setText } from "./dom.js";
import { bytes, count, short } from "./format.js";
import { askForKey, onKey } from "./keydialog.js";
import { clearNotice, notice } from "./notices.js";

const EVERY_MS = 2000;
const MOST_MS = 15_000;
const PATIENCE_MS = 10_000;
const READINGS = 3;

const charts = {
  speed: new Chart("Tokens/s", short),
  queue: new Chart("Requests", count),
  memory: new Chart("Memory", bytes),
};

let readings = [];
let failures = 0;
let timer = null;
let back = () => undefined;

/** Begin asking; `onBack()` is called whenever the server answers after it did not. */
export function startStatus(onBack) {
  back = onBack;
  byId("charts").append(el("div", { class: "charts" }, ...Object.values(charts).map((chart) => chart.element)));
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : poll()));
  addEventListener("online", poll);
  onKey(poll);
  poll();
}

async function poll() {
  clearTimeout(timer);
  try {
    show(await callJson("v1/status", { signal: AbortSignal.timeout(PATIENCE_MS) }));
  } catch (error) {
    fail(error);
  }
  const wait = Math.min(MOST_MS, EVERY_MS * 2 ** Math.min(failures, 3));
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(poll, wait);
}

function show(status) {
  const wasGone = failures > 0;
  failures = 0;
  clearNotice("gone");
  clearNotice("key");
  setConnection("ready", "ready");
  draw(status);
  if (wasGone) back();
}

function draw({ tokens_total, running, queued, segment_bytes, segment_limit_bytes, rss_bytes }) {
  charts.speed.push(speedOf(tokens_total), { most: 10 });
  charts.queue.push(running + queued, { most: 4, words: queued ? `${count(running)} + ${count(queued)} queued` : count(running) });
  charts.memory.push(segment_bytes, { most: segment_limit_bytes });
  const kept = `${bytes(segment_bytes)} of ${bytes(segment_limit_bytes)} for what was read`;
  charts.memory.element.title = `${kept}; all processes have ${bytes(rss_bytes)} in use`;
}

/** Tokens a second over the last readings: replicas send their counts once a second, so two readings alone would jitter. */
function speedOf(tokens) {
  if (readings.length && tokens < readings.at(-1).tokens) readings = []; // a replica ended, or began anew
  const now = { at_s: performance.now() / 1000, tokens };
  readings = [...readings, now].slice(-READINGS);
  const [first] = readings;
  return first === now ? null : (tokens - first.tokens) / (now.at_s - first.at_s);
}

function fail(error) {
  failures += 1;
  readings = [];
  if (error.kind === "key") {
    setConnection("closed", "needs a key");
    askForKey(error);
  } else if (error.kind === "gone" || error.kind === "server") {
    setConnection("gone", "not reachable");
    notice("gone", `${error.message} Trying again by itself.`);
  } else {
    setConnection("gone", "no status");
    notice("gone", error.message);
  }
  for (const chart of Object.values(charts)) chart.push(null);
}

function setConnection(state, text) {
  byId("connection").dataset.state = state;
  setText(byId("connection").firstElementChild, text);
}
