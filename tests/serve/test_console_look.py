"""The console for everybody: by keyboard, with names, legible, on a phone, without jumps."""

import re
from collections.abc import Callable

import pytest
from console_page import STORY, WAIT_MS, add_file, answered, ask
from playwright.sync_api import Page, expect

PAIRS = (
    *(("text", "ground"), ("text", "raised"), ("text", "accent-soft"), ("quiet", "ground"), ("quiet", "sunken")),
    *(("quiet", "raised"), ("accent", "ground"), ("on-accent", "accent"), ("warn", "ground"), ("warn", "warn-soft")),
    ("text", "mark"),
)
"""Colours of text and what lies behind it."""


def test_the_keyboard_reaches_everything_and_always_shows_where_it_is(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.locator(".skip").focus()
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        if reached[-1] == "send":
            break
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none" or reached[-1] in ("message", "file"), reached[-1]
    positions = [
        reached.index(name) for name in ("open-key", "new-chat", "file", "unlimited", "log", "message", "send")
    ]
    assert positions == sorted(positions)


def test_every_control_has_a_name(page: Page) -> None:
    add_file(page, "named.txt", STORY)
    ask(page, "hello")
    answered(page)
    for details in page.locator("details:not([open]) > summary").all():
        details.click()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea")].filter((node) => {
          const labels = [...(node.labels ?? [])].map((label) => label.textContent).join("");
          return !(node.getAttribute("aria-label") || labels || node.textContent).trim();
        }).map((node) => node.outerHTML)"""
    )
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((node) => node.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_its_ground(open_page: Callable[..., Page], scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    expect(page.locator("#connection")).to_have_text("ready")
    colours = page.evaluate(
        """(names) => {
          const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
          const read = (colour) => {
            canvas.fillStyle = colour;
            canvas.fillRect(0, 0, 1, 1);
            return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
          };
          const style = getComputedStyle(document.documentElement);
          const colours = Object.fromEntries(names.map((name) => [name, read(style.getPropertyValue(`--${name}`))]));
          const mark = document.body.appendChild(document.createElement("mark"));
          mark.style.setProperty("--strength", 1);
          read(style.getPropertyValue("--raised"));
          return { ...colours, mark: read(getComputedStyle(mark).backgroundColor) };
        }""",
        sorted({name for pair in PAIRS for name in pair} - {"mark"}),
    )
    low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in PAIRS}
    assert min(low.values()) >= 4.5, low
    assert (luminance(colours["ground"]) < 0.1) == (scheme == "dark")


def luminance(colour: list[int]) -> float:
    """Return the relative luminance of WCAG 2.2."""
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in (c / 255 for c in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[int], other: list[int]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_it_fits_a_phone_and_its_side_opens_as_a_sheet(open_page: Callable[..., Page]) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    button = page.get_by_role("button", name="Documents and settings")
    button.click()
    expect(page.get_by_label("Unlimited context")).to_be_in_viewport()
    add_file(page, "a-document-with-a-name-that-does-not-fit-anywhere-on-a-phone.txt", STORY)
    page.keyboard.press("Escape")
    expect(page.get_by_label("Unlimited context")).not_to_be_in_viewport()
    expect(button).to_be_focused()
    set_by = page.get_by_label("Message", exact=True)
    set_by.fill("unbreakable" * 40)
    page.get_by_role("button", name="Send", exact=True).click()
    expect(page.locator(".turn")).to_have_attribute("data-state", re.compile("done|streaming"), timeout=WAIT_MS)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.evaluate("document.getElementById('log').scrollWidth <= document.getElementById('log').clientWidth")
    small = page.evaluate(
        """() => [...document.querySelectorAll("header button, #composer button")]
          .filter((node) => node.checkVisibility() && node.getBoundingClientRect().height < 24)
          .map((node) => node.outerHTML)"""
    )
    assert small == []
    page.keyboard.press("Escape")


def test_nothing_jumps_while_an_answer_is_written(page: Page) -> None:
    expect(page.locator("#connection")).to_have_text("ready")
    place = "node => { const { x, y, width, height } = node.getBoundingClientRect(); return [x, y, width, height]; }"
    watched = [page.locator(name) for name in ("header.bar", "#side", "#charts", "#composer", "#send", "#log")]
    before = [each.evaluate(place) for each in watched]
    ask(page, "hello")
    during = []
    while page.locator(".turn").get_attribute("data-state") != "done":
        during.append([each.evaluate(place) for each in watched])
    answered(page)
    after = [each.evaluate(place) for each in watched]
    assert [each for each in [*during, after] if each != before] == [], before
