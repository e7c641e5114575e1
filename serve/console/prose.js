// A model's text: paragraphs as they are, and fenced code in boxes of its own. Everything stays text.

import { el, setText } from "./dom.js";

/** Cut text into [{kind: "text" | "code", text}]; a fence that is still open runs to the end. */
export function parts(text) {
  return text
    .split(/^```[^\n`]*\n?/m)
    .map((piece, i) => ({ kind: i % 2 ? "code" : "text", text: i % 2 ? piece.replace(/\n$/, "") : piece.trim() }))
    .filter(({ kind, text }) => text || kind === "code");
}

/** Show `text` in `box`, touching only what changed since the last time. */
export function showProse(box, text) {
  const wanted = parts(text);
  while (box.childElementCount > wanted.length) box.lastElementChild.remove();
  wanted.forEach((part, i) => {
    const node = box.children[i];
    if (node?.dataset.kind === part.kind) setText(node, part.text);
    else if (node) node.replaceWith(made(part));
    else box.append(made(part));
  });
}

const made = ({ kind, text }) =>
  el(kind === "code" ? "pre" : "div", { "data-kind": kind, dir: kind === "code" ? "ltr" : "auto", tabindex: kind === "code" ? "0" : null }, text);
