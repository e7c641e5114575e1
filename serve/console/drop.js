// Files come by dropping them anywhere on the page, by the button, or by pasting.

import { byId } from "./dom.js";

/** Give files to `documents`. */
export function startDrop(documents) {
  const veil = byId("veil");
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    veil.hidden = false;
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && (veil.hidden = true));
  addEventListener("drop", (event) => {
    veil.hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    documents.add(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => event.clipboardData?.files.length && documents.add(event.clipboardData.files));
  byId("file").addEventListener("change", (event) => {
    documents.add(event.target.files);
    event.target.value = ""; // the same file may be chosen again
  });
}
