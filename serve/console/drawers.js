// The side and the passages: columns where there is room, sheets over the page where there is not.

import { byId } from "./dom.js";

const narrow = matchMedia("(max-width: 60rem)");
const tight = matchMedia("(max-width: 75rem)");

let opener = null;

/** Wire the buttons, the scrim and Escape. */
export function startDrawers() {
  byId("open-side").addEventListener("click", () => openSide());
  byId("close-side").addEventListener("click", closeAll);
  byId("scrim").addEventListener("click", closeAll);
  addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !anyOpen() || document.querySelector("dialog[open]")) return;
    event.preventDefault();
    closeAll();
  });
  narrow.addEventListener("change", settle);
  tight.addEventListener("change", settle);
  settle();
}

/** Open the passages; the focus comes back to `from`. */
export function openPassages(from) {
  opener = from;
  byId("passages").hidden = false;
  settle();
  byId("passages").focus();
}

/** Close what is open, and give the focus back. */
export function closeAll() {
  byId("passages").hidden = true;
  byId("side").dataset.open = "false";
  settle();
  opener?.focus();
  opener = null;
}

function openSide() {
  opener = byId("open-side");
  byId("side").dataset.open = "true";
  settle();
  byId("side").focus();
}

const sideOpen = () => narrow.matches && byId("side").dataset.open === "true";
const sheetOpen = () => tight.matches && !byId("passages").hidden;
const anyOpen = () => sideOpen() || !byId("passages").hidden;

/** What lies under a sheet takes no focus. */
function settle() {
  const covered = sideOpen() || sheetOpen();
  byId("scrim").hidden = !covered;
  byId("side").inert = narrow.matches && !sideOpen();
  document.querySelector("main").inert = covered;
  document.querySelector("header.bar").inert = covered;
  if (sheetOpen() && !narrow.matches) byId("side").inert = true;
  byId("passages").inert = sideOpen();
  byId("open-side").setAttribute("aria-expanded", String(sideOpen()));
}
