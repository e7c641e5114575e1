// A line over the last two minutes; its place on the page never changes its size.

import { el, setText, svg } from "./dom.js";

const WIDTH = 120;
const HEIGHT = 36;
const POINTS = 60;

/** A chart with a title, a line from zero to the largest value seen, and the newest value in words. */
export class Chart {
  #values = [];
  #now = el("p", { class: "now" }, "–");
  #line = svg("polyline", { class: "line" });
  #area = svg("polygon", { class: "area" });
  #write;

  /** `write` turns a value into words. */
  constructor(title, write) {
    this.#write = write;
    const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" };
    this.element = el("div", { class: "chart" }, el("h3", {}, title), svg("svg", box, this.#area, this.#line), this.#now);
  }

  /** Add a value; null leaves a gap. The scale ends at `most` at least; `words` say more than the number does. */
  push(value, { most, words = value === null ? "–" : this.#write(value) } = { most: 1 }) {
    this.#values = [...this.#values, value].slice(-POINTS);
    const top = Math.max(most, ...this.#values);
    setText(this.#now, words);
    this.element.title = `the last two minutes, from 0 to ${this.#write(top)}`;
    this.#draw(top);
  }

  #draw(top) {
    const points = this.#values.flatMap((value, i) => (value === null ? [] : [this.#place(value, i, top)]));
    const text = points.map(([x, y]) => `${x},${y}`).join(" ");
    this.#line.setAttribute("points", text);
    const ends = points.length ? `${points.at(-1)[0]},${HEIGHT} ${points[0][0]},${HEIGHT}` : "";
    this.#area.setAttribute("points", `${text} ${ends}`.trim());
  }

  #place(value, i, top) {
    const x = WIDTH - (this.#values.length - 1 - i) * (WIDTH / (POINTS - 1));
    return [x.toFixed(2), (HEIGHT - 1 - (value / top) * (HEIGHT - 3)).toFixed(2)];
  }
}
