"""The console's documents, and the passages an answer drew on."""

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
from console_page import STORY, WAIT_MS, add_file, answered, ask, row
from playwright.sync_api import Page, expect
from served_app import Served, wait_until


def test_a_dropped_file_is_encoded_before_ones_eyes_and_chosen_for_questions(page: Page) -> None:
    page.evaluate(
        """([name, text]) => {
          const files = new DataTransfer();
          files.items.add(new File([text], name, { type: "text/plain" }));
          window.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true }));
        }""",
        ["dropped.txt", STORY],
    )
    begun = re.compile("queued|encoding|ready")
    expect(row(page, "dropped.txt")).to_have_attribute("data-state", begun, timeout=WAIT_MS)
    expect(row(page, "dropped.txt")).to_have_attribute("data-state", "ready", timeout=WAIT_MS)
    expect(row(page, "dropped.txt").get_by_role("checkbox")).to_be_checked()
    expect(row(page, "dropped.txt")).to_contain_text("tokens")
    expect(page.get_by_label("Documents this question is asked about")).to_contain_text("dropped.txt")


def test_the_progress_shown_never_goes_back(page: Page) -> None:
    page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => {
            const meta = document.querySelector(".document .meta");
            const found = meta && /^(\\d+) %/.exec(meta.textContent);
            if (found) window.seen.push(Number(found[1]));
          }).observe(document.getElementById("documents"), { subtree: true, childList: true, characterData: true });
        }"""
    )
    add_file(page, "long.txt", STORY * 6)
    expect(row(page, "long.txt")).to_have_attribute("data-state", "ready", timeout=WAIT_MS)
    seen = page.evaluate("window.seen")
    assert len(seen) > 1
    assert seen == sorted(seen)


def test_an_upload_that_breaks_off_goes_on_where_it_ended(page: Page, app: Served) -> None:
    text = "".join(f"{i} bottles on the wall. " for i in range(120_000))
    sent, broken = [], []

    def break_once(route: Any) -> None:
        offset = int(route.request.headers["upload-offset"])
        if offset and not broken:
            broken.append(offset)
            return route.abort("connectionreset")
        sent.append(offset)
        return route.continue_()

    page.route(
        "**/v1/documents/uploads/*",
        lambda route: break_once(route) if route.request.method == "PATCH" else route.continue_(),
    )
    add_file(page, "bottles.txt", text)
    expect(row(page, "bottles.txt").get_by_role("checkbox")).to_be_enabled()
    assert broken
    assert len(sent) == len(set(sent))
    listed = httpx.get(f"{app.url}/v1/documents", headers=app.headers).json()["data"]
    assert next(each for each in listed if each["name"] == "bottles.txt")["num_bytes"] == len(text)
    row(page, "bottles.txt").get_by_role("button").click()
    row(page, "bottles.txt").get_by_role("button", name="Delete").click()
    expect(row(page, "bottles.txt")).to_have_count(0)


def test_the_same_text_again_is_said_to_be_here(page: Page) -> None:
    add_file(page, "first.txt", STORY)
    expect(row(page, "first.txt").get_by_role("checkbox")).to_be_checked()
    add_file(page, "second.txt", STORY)
    expect(row(page, "first.txt")).to_contain_text("second.txt has the same text")
    expect(page.locator(".document")).to_have_count(1)


def test_a_file_that_is_no_text_says_why(page: Page) -> None:
    page.get_by_label("Choose text files").set_input_files(
        {"name": "photo.txt", "mimeType": "text/plain", "buffer": b"abc\xff\xfe"}
    )
    expect(row(page, "photo.txt")).to_contain_text("not UTF-8: byte 3")


def test_the_passages_shown_are_the_documents_own_characters(page: Page, app: Served) -> None:
    add_file(page, "story.txt", STORY)
    expect(row(page, "story.txt")).to_have_attribute("data-state", "ready", timeout=WAIT_MS)
    ask(page, "Where is the key?")
    answered(page)
    page.get_by_role("button", name=re.compile(r"\d+ passages?")).click()
    marks = page.locator("#passages mark")
    expect(marks.first).to_be_visible()
    told = wait_until(lambda: kept_answer(page)["hsokv"], what="a kept answer")  # it is kept a moment after it ends
    passages = [each for each in told["passages"] if each["document"]]
    wanted = {STORY[each["char_begin"] : each["char_end"]] for each in passages}
    shown = set(marks.all_text_contents())
    assert shown
    assert all(any(text in whole for whole in wanted) for text in shown)


def test_a_stronger_passage_is_marked_stronger(page: Page) -> None:
    add_file(page, "strong.txt", STORY)
    expect(row(page, "strong.txt")).to_have_attribute("data-state", "ready", timeout=WAIT_MS)
    ask(page, "Where is the key?")
    answered(page)
    page.get_by_role("button", name=re.compile(r"\d+ passages?")).click()
    expect(page.locator("#passages mark").first).to_be_visible()
    pairs = page.locator("#passages mark").evaluate_all(
        "marks => marks.map((mark) => [parseFloat(mark.title), Number(mark.style.getPropertyValue('--strength'))])"
    )
    assert [strength for _, strength in sorted(pairs)] == sorted(strength for _, strength in pairs)
    assert max(strength for _, strength in pairs) == 1


def test_a_passage_is_cut_by_code_points_not_by_utf16_units(open_page: Callable[..., Page]) -> None:
    page = open_page()
    runs = page.evaluate(
        """async () => {
          const { cut } = await import("./console/passageset.js");
          return cut("a\\u{1F600}b\\u{1F600}cd", 10, [{ char_begin: 12, char_end: 14, mass: 0.5 }]);
        }"""
    )
    assert [(run["text"], run["mass"]) for run in runs] == [("a\U0001f600", 0), ("b\U0001f600", 0.5), ("cd", 0)]


def test_passages_that_overlap_lose_no_character(open_page: Callable[..., Page]) -> None:
    page = open_page()
    text = "".join(chr(97 + i % 26) for i in range(400))
    joined = page.evaluate(
        """async (text) => {
          const { cut, excerpts } = await import("./console/passageset.js");
          const places = [[5, 60], [50, 90], [70, 80], [300, 310]];
          const passages = places.map(([char_begin, char_end]) => ({ char_begin, char_end, mass: 0.1 }));
          return excerpts(passages, text.length).map(({ begin, end, passages }) => [
            text.slice(begin, end),
            cut(text.slice(begin, end), begin, passages).map((run) => run.text).join(""),
          ]);
        }""",
        text,
    )
    assert joined
    assert all(whole == cut for whole, cut in joined)


def kept_answer(page: Page) -> dict[str, Any]:
    """Return the first answer as the page keeps it over a reload."""
    return json.loads(page.evaluate("localStorage.getItem('hsokv.console')"))["turns"][0]["answer"]
