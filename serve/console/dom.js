// Elements without markup: whatever a server or a model says becomes text.

const SVG = "http://www.w3.org/2000/svg";

/** Return the element of the page with this id. */
export const byId = (id) => document.getElementById(id);

/** Make an element: attributes, listeners (`onclick`), then children, whose strings stay text. */
export const el = (name, props = {}, ...children) => fill(document.createElement(name), props, children);

/** Make an element of a drawing. */
export const svg = (name, props = {}, ...children) => fill(document.createElementNS(SVG, name), props, children);

/** Make a drawing of one stroke in a 20 by 20 box. */
export const icon = (path) =>
  svg("svg", { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true" }, svg("path", { d: path }));

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") node.toggleAttribute(name, value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Set an element's text, only where it differs: a screen reader is not told twice. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Tell a screen reader. */
export function announce(text) {
  byId("announcer").textContent = text;
}
