"""The console and its server: gone, locked, busy, followed by charts."""

import re
from collections.abc import Callable

import httpx
import pytest
from console_page import answered, ask, set_option
from playwright.sync_api import Page, expect
from served_app import KEYS, Served


def test_a_server_that_is_gone_is_said_to_be_and_found_again(page: Page) -> None:
    expect(page.locator("#connection")).to_have_text("ready")
    page.context.set_offline(True)
    expect(page.locator(".notice")).to_contain_text("does not answer")
    ask(page, "Is anybody there?")
    expect(page.get_by_role("group", name="Error")).to_contain_text("does not answer")
    page.context.set_offline(False)
    expect(page.locator(".notice")).to_have_count(0)
    page.get_by_role("button", name="Try again").click()
    answered(page)


def test_a_key_is_asked_for_and_stays_in_the_tab(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(served.url)
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("only those who have a key")
    page.get_by_label("Key", exact=True).fill("a wrong key, a wrong key")
    page.keyboard.press("Enter")
    expect(dialog).to_contain_text("not known here")
    page.get_by_label("Key", exact=True).fill(KEYS["ann"])
    page.keyboard.press("Enter")
    expect(page.locator("#connection")).to_have_text("ready")
    ask(page, "hello")
    answered(page)
    page.reload()
    expect(page.locator("#connection")).to_have_text("ready")
    expect(dialog).to_be_hidden()
    assert KEYS["ann"] not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
    other = page.context.new_page()
    other.goto(f"{served.url}/")
    expect(other.get_by_role("dialog")).to_be_visible()


def test_who_waves_the_key_away_is_told_how_to_give_it(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(served.url)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Enter key").click()
    page.get_by_label("Key", exact=True).fill(KEYS["ben"])
    page.get_by_role("button", name="Use this key").click()
    expect(page.locator("#connection")).to_have_text("ready")
    expect(page.locator(".notice")).to_have_count(0)


def test_a_busy_server_is_asked_again_by_itself(
    open_page: Callable[..., Page], start_app: Callable[..., Served]
) -> None:
    engine = {"max_running": 8, "max_queued": 8, "max_new_tokens": 100_000}
    busy = start_app("busy", "/busy", limits={"requests_per_owner": 1}, engine=engine)
    page = open_page(busy.url)
    set_option(page, "How it answers", "Max tokens", "8")
    body = {"model": busy.model, "prompt": "The", "max_tokens": 100_000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{busy.url}/v1/completions", json=body, timeout=60) as other:
        assert other.status_code == 200
        ask(page, "Is there room?")
        expect(page.locator(".turn .wait")).to_have_text(re.compile(r"wait for some to end.*Trying again in \d+ s"))
    answered(page)


def test_the_charts_follow_the_server(page: Page) -> None:
    ask(page, "hello")
    answered(page)
    charts = page.locator(".chart")
    expect(charts).to_have_count(3)
    for i in range(3):
        expect(charts.nth(i).locator(".now")).to_have_text(re.compile(r"\d"))
        points = charts.nth(i).locator("polyline")
        expect(points).to_have_attribute("points", re.compile(r"[\d.]+,[\d.]+ [\d.]+,[\d.]+"))


def test_the_page_asks_nobody_but_its_own_server(open_page: Callable[..., Page], app: Served) -> None:
    page = open_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    expect(page.locator("#connection")).to_have_text("ready")
    assert asked
    assert all(url.startswith(app.url) for url in asked)


@pytest.mark.parametrize("cuts", [1, 3, 1000])
def test_events_are_read_wherever_the_network_cuts_them(open_page: Callable[..., Page], cuts: int) -> None:
    values = ["one", "zwölf \U0001f600", "two\nlines", "[DONE]"]
    sent = ": beat\n\n" + "".join("".join(f"data: {line}\n" for line in each.split("\n")) + "\n" for each in values)
    page = open_page()
    read = page.evaluate(
        """async ([bytes, size]) => {
          const { events } = await import("./console/sse.js");
          const body = new ReadableStream({
            start(sink) {
              for (let at = 0; at < bytes.length; at += size) sink.enqueue(new Uint8Array(bytes.slice(at, at + size)));
              sink.close();
            },
          });
          const found = [];
          for await (const data of events({ body })) found.push(data);
          return found;
        }""",
        [list(sent.encode()), cuts],
    )
    assert read == values
