"""What tests of the console do with its page."""

import json
import os
import shutil

from playwright.sync_api import Locator, Page, Route, expect

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
STORY = (
    "The lighthouse keeper wrote a letter every evening. " * 40
    + "The key lies under the third stone. "
    + "Rain. " * 300
)
WAIT_MS = 60_000
"""For what a model does; the page itself has Playwright's five seconds."""


def set_option(page: Page, section: str, label: str, value: str) -> None:
    summary = page.get_by_text(section, exact=True)
    if not page.get_by_label(label, exact=True).is_visible():
        summary.click()
    page.get_by_label(label, exact=True).fill(value)
    page.get_by_label(label, exact=True).blur()


def ask(page: Page, question: str) -> None:
    page.get_by_label("Message", exact=True).fill(question)
    page.get_by_label("Message", exact=True).press("Enter")


def ask_without_end(page: Page) -> None:
    """Ask for an answer of 1,900 tokens, and wait until it has begun."""

    def lengthen(route: Route) -> None:
        body = route.request.post_data_json | {"ignore_eos": True, "max_tokens": 1900}
        route.continue_(post_data=json.dumps(body))

    page.route("**/v1/chat/completions", lengthen)
    ask(page, "Tell a long story.")
    expect(page.locator(".turn .prose")).not_to_be_empty()


def answered(page: Page, number: int = 0) -> str:
    """Wait for the answer of turn `number` and return its text."""
    turn = page.locator(".turn").nth(number)
    expect(turn).to_have_attribute("data-state", "done", timeout=WAIT_MS)
    return turn.locator(".prose").inner_text()


def add_file(page: Page, name: str, text: str, kind: str = "text/plain") -> None:
    page.get_by_label("Choose text files").set_input_files({"name": name, "mimeType": kind, "buffer": text.encode()})


def row(page: Page, name: str) -> Locator:
    return page.locator(".document").filter(has_text=name)
