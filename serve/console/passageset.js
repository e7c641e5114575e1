// Which stretches of a text to show for an answer's passages.

const AROUND = 160; // characters before and behind a passage

/** Group passages by document: [{document, passages, mass}], heaviest document first. */
export function byDocument(passages) {
  const groups = new Map();
  for (const passage of passages) {
    const group = groups.get(passage.document) ?? { document: passage.document, passages: [], mass: 0 };
    group.passages.push(passage);
    group.mass += passage.mass;
    groups.set(passage.document, group);
  }
  return [...groups.values()].sort((a, b) => b.mass - a.mass);
}

/**
 * Join passages of a document of `length` characters whose surroundings touch: [{begin, end, passages, mass}] in
 * characters, heaviest first.
 */
export function excerpts(passages, length) {
  const ordered = [...passages].sort((a, b) => a.char_begin - b.char_begin);
  const found = [];
  for (const passage of ordered) {
    const [begin, end] = [Math.max(0, passage.char_begin - AROUND), Math.min(length, passage.char_end + AROUND)];
    const last = found.at(-1);
    if (last && begin <= last.end) {
      last.end = Math.max(last.end, end);
      last.passages.push(passage);
      last.mass += passage.mass;
    } else found.push({ begin, end, passages: [passage], mass: passage.mass });
  }
  return found.sort((a, b) => b.mass - a.mass);
}

/**
 * Cut a text that begins at character `offset` of its document into [{text, mass}], mass 0 outside of passages.
 * The server counts code points, JavaScript strings count UTF-16 units: hence the array.
 */
export function cut(text, offset, passages) {
  const points = Array.from(text);
  const slice = (begin, end) => points.slice(Math.max(0, begin - offset), Math.max(0, end - offset)).join("");
  const runs = [];
  let at = offset;
  for (const { char_begin: begin, char_end: end, mass } of [...passages].sort((a, b) => a.char_begin - b.char_begin)) {
    if (end <= at) continue;
    runs.push({ text: slice(at, begin), mass: 0 }, { text: slice(Math.max(at, begin), end), mass });
    at = end;
  }
  runs.push({ text: slice(at, offset + points.length), mass: 0 });
  return runs.filter((run) => run.text);
}
