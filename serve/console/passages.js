// The panel that shows what an answer drew on: the source text, each passage as strong as the attention it got.

import { callJson } from "./api.js";
import { byId, el, setText, svg } from "./dom.js";
import { count, plural } from "./format.js";
import { byDocument, cut, excerpts } from "./passageset.js";

const SHOWN = 8;

/** Fill the panel with the passages of `turn`; `documentOf(id)` is what is known of a document, `close()` ends it. */
export function showPassages(turn, { documentOf, close }) {
  const { passages } = turn.answer.hsokv;
  const strongest = Math.max(...passages.map(({ mass }) => mass));
  byId("passages").replaceChildren(
    el(
      "header",
      {},
      el("h2", { id: "passages-title" }, "What this answer read"),
      el("button", { type: "button", class: "plain close", onclick: close }, "Close"),
    ),
    el("blockquote", { dir: "auto" }, turn.question),
    el("p", { class: "quiet" }, `${plural(passages.length, "passage")} drew ${percent(massOf(passages))} of the attention.`),
    el("p", { class: "legend quiet", "aria-hidden": "true" }, "weaker", el("span", { class: "scale" }), "stronger"),
    ...byDocument(passages).map((group) => section(group, strongest, documentOf)),
  );
}

const massOf = (passages) => passages.reduce((sum, { mass }) => sum + mass, 0);

const percent = (part) => `${part >= 0.0995 ? Math.round(part * 100) : (part * 100).toFixed(1)} %`;

function section({ document: id, passages, mass }, strongest, documentOf) {
  const document = id === null ? null : documentOf(id);
  const title = id === null ? "This conversation" : (document?.name ?? "A document that is gone");
  const cards = el("div", { class: "cards" });
  const head = [el("h3", {}, title), el("p", { class: "quiet" }, `${percent(mass)} of the attention`)];
  if (document === null) cards.append(...passages.map((passage) => saidCard(passage, strongest)));
  else if (document) addExcerpts(cards, passages, document, strongest);
  return el("section", {}, ...head, document && strip(passages, strongest, document), cards);
}

/** A passage of the conversation brings its text along. */
function saidCard(passage, strongest) {
  const text = el("p", { class: "source", dir: "auto" }, shown({ text: passage.text, mass: passage.mass }, strongest));
  return el("article", { class: "card" }, el("p", { class: "place quiet" }, "said here", el("span", {}, percent(passage.mass))), text);
}

function addExcerpts(cards, passages, document, strongest) {
  const all = excerpts(passages, document.num_characters);
  const add = (some) => cards.append(...some.map((excerpt) => excerptCard(excerpt, document, strongest)));
  add(all.slice(0, SHOWN));
  if (all.length <= SHOWN) return;
  const more = el("button", { type: "button", class: "plain small" }, `Show ${plural(all.length - SHOWN, "more excerpt")}`);
  more.addEventListener("click", () => {
    more.remove();
    add(all.slice(SHOWN));
    cards.children[SHOWN].focus();
  });
  cards.append(more);
}

function excerptCard(excerpt, document, strongest) {
  const place = el("span", {}, charactersOf(excerpt));
  const text = el("p", { class: "source loading", dir: "auto" }, "…");
  const head = el("p", { class: "place quiet" }, place, el("span", {}, percent(excerpt.mass)));
  fill(place, text, excerpt, document, strongest);
  return el("article", { class: "card", id: cardId(document, excerpt.passages[0]), tabindex: "-1" }, head, text);
}

const cardId = ({ id }, { char_begin: begin }) => `excerpt-${id}-${begin}`;

const charactersOf = ({ passages }) => `characters ${count(passages[0].char_begin)} to ${count(passages.at(-1).char_end)}`;

async function fill(place, text, excerpt, document, strongest) {
  const { begin, end, passages } = excerpt;
  try {
    const part = await callJson(`v1/documents/${document.id}/text?begin=${begin}&end=${end}`);
    const runs = cut(part.text, begin, passages).map((run) => shown(run, strongest));
    text.replaceChildren(begin > 0 ? "… " : "", ...runs, end < part.total ? " …" : "");
    const pages = part.pages.filter((page) => page.begin < passages.at(-1).char_end && page.end > passages[0].char_begin);
    setText(place, [...pages.map(nameOfPage), charactersOf(excerpt)].join(", "));
  } catch (error) {
    text.replaceChildren(`The text cannot be shown: ${error.message}`);
    text.classList.add("error");
  }
  text.classList.remove("loading");
}

const nameOfPage = ({ page, title }) => title ?? (page === null ? "a page" : `page ${page}`);

function shown({ text, mass }, strongest) {
  if (!mass) return text;
  const mark = el("mark", { title: `${percent(mass)} of the attention` }, text);
  mark.style.setProperty("--strength", (mass / strongest).toFixed(3));
  return mark;
}

/** A picture of where in the document the passages lie; the excerpts say the same in words. */
function strip(passages, strongest, document) {
  const length = document.num_characters;
  const all = excerpts(passages, length);
  const ticks = passages.map((passage) => {
    const width = Math.max(0.8, ((passage.char_end - passage.char_begin) / length) * 100);
    const x = Math.min(100 - width, (passage.char_begin / length) * 100);
    const opacity = (0.4 + 0.6 * (passage.mass / strongest)).toFixed(2);
    const owner = all.find((excerpt) => excerpt.passages.includes(passage));
    const go = () => byId(cardId(document, owner.passages[0]))?.scrollIntoView({ block: "center" });
    return svg("rect", { x, y: 0, width, height: 10, opacity, onclick: go });
  });
  return svg("svg", { class: "strip", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" }, ...ticks);
}
