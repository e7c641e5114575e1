"""The console in headless Chromium, against the application itself: questions, answers, settings."""

import re

import httpx
from console_page import STORY, WAIT_MS, add_file, answered, ask, ask_without_end, row, set_option
from playwright.sync_api import Page, expect
from served_app import Served

from hsokv_ray.longcontext.config import LongContextConfig


def test_an_answer_streams_into_the_page_and_is_the_one_the_api_gives(page: Page, app: Served) -> None:
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "What did the keeper write?")
    shown = answered(page)
    body = asked.value.post_data_json | {"stream": False}
    del body["stream_options"]
    answer = httpx.post(f"{app.url}/v1/chat/completions", json=body, headers=app.headers, timeout=60).json()
    assert shown.split() == answer["choices"][0]["message"]["content"].split()


def test_the_settings_are_explained_by_their_docstrings_and_go_with_the_question(page: Page) -> None:
    page.get_by_text("How it reads", exact=True).click()
    words = (LongContextConfig.model_fields["budget_tokens"].description or "").split()
    expect(page.locator("#context-form")).to_contain_text(" ".join(words[:8]))
    page.get_by_label("Budget tokens").fill("16")
    page.get_by_label("Positions").select_option("fixed")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "hello")
    sent = asked.value.post_data_json
    assert sent["long_context"] == {"enabled": True, "passages": True, "budget_tokens": 16, "positions": "fixed"}
    assert (sent["temperature"], sent["max_tokens"]) == (0, 24)
    answered(page)


def test_a_setting_out_of_its_limits_is_not_sent(page: Page) -> None:
    set_option(page, "How it answers", "Temperature", "3")
    expect(page.get_by_label("Temperature")).to_have_attribute("aria-invalid", "true")
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "hello")
    assert asked.value.post_data_json["temperature"] == 0
    answered(page)


def test_without_unlimited_context_a_question_past_the_window_is_refused_in_words(page: Page) -> None:
    page.get_by_label("Unlimited context").uncheck()
    ask(page, "word " * 2000)
    expect(page.get_by_role("group", name="Error")).to_contain_text(re.compile(r"\d"))
    page.get_by_label("Unlimited context").check()
    page.get_by_role("button", name="Try again").click()
    answered(page)


def test_everything_is_there_after_a_reload(page: Page) -> None:
    add_file(page, "kept.txt", STORY)
    expect(row(page, "kept.txt").get_by_role("checkbox")).to_be_checked()
    ask(page, "Who wrote?")
    text = answered(page)
    page.get_by_label("Message", exact=True).fill("a draft")
    page.get_by_label("Unlimited context").uncheck()
    page.reload()
    assert answered(page) == text
    expect(page.get_by_label("Message", exact=True)).to_have_value("a draft")
    expect(page.get_by_label("Unlimited context")).not_to_be_checked()
    expect(row(page, "kept.txt").get_by_role("checkbox")).to_be_checked()
    page.get_by_text("How it answers", exact=True).click()
    expect(page.get_by_label("Max tokens")).to_have_value("24")


def test_an_answer_cut_off_by_a_reload_is_said_to_have_stopped(page: Page) -> None:
    ask_without_end(page)
    page.reload()
    expect(page.locator(".turn")).to_have_attribute("data-state", "stopped")
    expect(page.locator(".turn .meta")).to_contain_text("stopped")


def test_escape_stops_an_answer_and_what_is_there_stays(page: Page) -> None:
    ask_without_end(page)
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".turn")).to_have_attribute("data-state", "stopped")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    assert page.locator(".turn .prose").inner_text()


def test_shift_enter_begins_a_line_and_enter_sends(page: Page) -> None:
    box = page.get_by_label("Message", exact=True)
    box.press_sequentially("one")
    box.press("Shift+Enter")
    box.press_sequentially("two")
    expect(box).to_have_value("one\ntwo")
    box.press("Enter")
    expect(box).to_have_value("")
    expect(page.locator(".question")).to_have_text("one\ntwo")
    answered(page)


def test_a_new_chat_is_empty_and_keeps_the_settings(page: Page) -> None:
    ask(page, "hello")
    answered(page)
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.get_by_role("heading", name="Ask about texts of any length")).to_be_visible()
    expect(page.get_by_label("Max tokens")).to_have_value("24")


def test_the_conversation_so_far_goes_with_a_question(page: Page) -> None:
    ask(page, "first")
    first = answered(page)
    with page.expect_request("**/v1/chat/completions") as asked:
        ask(page, "second")
    roles = [(each["role"], " ".join(each["content"].split())) for each in asked.value.post_data_json["messages"]]
    assert [role for role, _ in roles] == ["user", "assistant", "user"]
    assert roles[0][1] == "first"
    assert roles[1][1] == " ".join(first.split())
    answered(page, 1)


def test_what_is_asked_is_never_taken_for_markup(page: Page) -> None:
    attack = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    ask(page, attack)
    expect(page.locator(".question")).to_have_text(attack)
    add_file(page, "<img src=x onerror=alert(3)>.txt", STORY)
    expect(page.locator(".document .name").filter(has_text="<img src=x onerror=alert(3)>")).to_be_visible()
    assert page.locator("main img, .documents img, script:not([src])").count() == 0
    answered(page)
    expect(page.locator(".document")).to_have_attribute("data-state", "ready", timeout=WAIT_MS)
