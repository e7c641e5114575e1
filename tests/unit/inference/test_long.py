"""`hsokv generate --long` as a user runs it."""

import contextlib
import io
import sys
from pathlib import Path

import pytest

from hsokv_ray import cli
from hsokv_ray.inference.checkpoints import resolve
from hsokv_ray.inference.loading import load
from hsokv_ray.longcontext import LongContext, LongContextConfig

Capture = pytest.CaptureFixture[str]
TEXT = "The quick brown fox jumps over the lazy dog. " * 30


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "book.txt").write_text(TEXT)
    return tmp_path / "book.txt"


def run(*words: str | Path) -> int:
    return cli.main(["generate", *map(str, words)])


def test_a_prompt_is_asked_about_a_text_far_past_the_window(llama: Path, book: Path, capsys: Capture) -> None:
    assert run(llama, "--long", "--input", book, "--prompt", "The", "--temperature", "0", "--max-length", "8") == 0
    done = capsys.readouterr()
    loaded = load(resolve(str(llama)), device="cpu")
    with LongContext(loaded.model, loaded.tokenizer, LongContextConfig(enabled=True)) as lc:
        expected = lc.generate(lc.encode(TEXT), prompt="The", max_new_tokens=8, do_sample=False)
    assert done.out == f"The{expected.text}\n"
    assert " tokens in memory (" in done.err
    assert "retrieval" in done.err


def test_an_encoded_text_is_kept_and_asked_again_without_the_text(
    llama: Path, book: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--long", "--memory", tmp_path / "kept", "--temperature", "0", "--max-length", "8")
    assert run(llama, *words, "--input", book, "--prompt", "fox") == 0
    first = capsys.readouterr().out
    book.unlink()
    assert run(llama, *words, "--prompt", "fox") == 0
    assert capsys.readouterr().out == first
    monkeypatch.setattr(sys, "stdin", io.StringIO("fox\nstats\nquit\n"))
    assert run(llama, *words) == 0
    out = capsys.readouterr().out
    assert first.strip() in out
    assert "1 texts, 8 tokens" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--long", "--prompt", "x"], "--long needs a text: --input FILE, or --memory FOLDER"),
        (["--long", "--input", "nowhere.txt", "--prompt", "x"], "nowhere.txt cannot be read"),
        (["--long", "--memory", "nowhere", "--prompt", "x"], "nowhere is no folder; give --input too"),
        (["--memory", "m", "--prompt", "x"], "--memory m needs --long"),
        (["--long", "--input", "a", "--output", "b"], "--output b is for the lines of --input"),
        (["--long", "--input", "a", "--granularity", "token", "--index", "block_mean"], "use flat, pq or ivf"),
    ],
)
def test_wrong_flags_are_one_line_that_says_what_to_do(
    llama: Path, words: list[str], message: str, capsys: Capture
) -> None:
    status = 2
    with contextlib.suppress(SystemExit):  # so ends what the parser itself refuses
        status = run(llama, *words)
    assert status == 2
    error = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in error


def test_a_budget_that_does_not_fit_says_what_would(llama: Path, book: Path, capsys: Capture) -> None:
    assert run(llama, "--long", "--input", book, "--prompt", "x", "--budget-tokens", "60") == 2
    assert "exceed the window of 64; lower --budget-tokens to" in capsys.readouterr().err
