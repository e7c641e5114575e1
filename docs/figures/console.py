"""Takes console.png and console-dark.png of a running server.

make serve                                  # in another terminal; with the model of `make demo`
python docs/figures/console.py [ADDRESS]    # needs Playwright (extra `dev`) and Chromium (or CHROMIUM=path)
"""

import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

FOLDER = Path(__file__).parent
DOCUMENT = Path(textwrap.__file__)
PATIENCE_MS = 120_000


def main(address: str) -> None:
    """Take both pictures of one page."""
    with sync_playwright() as playwright:
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(address)
        _set_up(page)
        page.screenshot(path=FOLDER / "console.png")
        page.emulate_media(color_scheme="dark")
        page.screenshot(path=FOLDER / "console-dark.png")
        browser.close()


def _set_up(page: Page) -> None:
    """Ask about a document, show what the answer read, and let another document be encoded."""
    _add(page, DOCUMENT.name, DOCUMENT.read_text())
    ready = page.locator(".document[data-state=ready]").filter(has_text=DOCUMENT.name)
    expect(ready).to_be_visible(timeout=PATIENCE_MS)
    page.get_by_text("How it answers").click()
    for label, value in (("Temperature", "0.8"), ("Top p", "0.9"), ("Max tokens", "96"), ("Seed", "4")):
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_text("How it answers").click()
    page.get_by_label("Message", exact=True).fill("def wrap(self, text):")
    page.get_by_label("Message", exact=True).press("Enter")
    page.get_by_role("button", name=re.compile(r"\d+ passages?")).click()
    expect(page.locator("#passages .loading")).to_have_count(0)
    library = "\n\n".join(path.read_text(errors="replace") for path in sorted(DOCUMENT.parent.glob("*.py"))[:60])
    _add(page, "standard-library.txt", library)
    under_way = page.locator(".document").filter(has_text=re.compile(r"[1-9]\d? % of"))
    expect(under_way).to_be_visible(timeout=PATIENCE_MS)
    page.mouse.move(640, 500)


def _add(page: Page, name: str, text: str) -> None:
    page.get_by_label("Choose text files").set_input_files(
        {"name": name, "mimeType": "text/plain", "buffer": text.encode()}
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
