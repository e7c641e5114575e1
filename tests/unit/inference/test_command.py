"""`hsokv generate` as a user runs it: in a process of its own."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from hsokv_ray import cli
from hsokv_ray.inference.config import SamplingConfig
from hsokv_ray.inference.generation import Generator

COMMAND = [sys.executable, "-m", "hsokv_ray.cli", "generate"]
Capture = pytest.CaptureFixture[str]


def run(*words: str | Path) -> int:
    return cli.main(["generate", *map(str, words)])


def read_until(text: str, stream: IO[str]) -> None:
    while text not in (line := stream.readline()):
        assert line, f"the output ended before {text!r}"


def test_a_prompt_gives_the_text_on_stdout_and_the_numbers_on_stderr(
    llama: Path, generator: Generator, capsys: Capture
) -> None:
    assert run(llama, "--prompt", "The quick", "--temperature", "0", "--max-length", "5") == 0
    done = capsys.readouterr()
    text = generator.generate("The quick", SamplingConfig(temperature=0, max_length=5)).text
    assert done.out == f"The quick{text}\n"
    numbers = done.err.splitlines()
    assert len(numbers) == 2
    assert numbers[1].startswith("5 tokens in")


def test_a_session_is_driven_through_stdin(
    llama: Path, generator: Generator, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "set temperature 0\nset max_length 5\nThe quick\nstats\nquit\nnever read\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert run(llama) == 0
    out = capsys.readouterr().out
    text = generator.generate("The quick", SamplingConfig(temperature=0, max_length=5)).text
    assert f"The quick{text}\n[5 tokens in" in out
    assert "1 texts, 5 tokens" in out
    assert "never read" not in out


def test_a_batch_writes_one_line_per_prompt_and_counts_what_it_skipped(
    llama: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "in").write_text("one\n\ntwo\n")
    output = tmp_path / "out"
    assert run(llama, "--input", tmp_path / "in", "--output", output, "--max-length", "3", "--seed", "1") == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["prompt"], row["tokens"]) for row in rows] == [("one", 3), ("two", 3)]
    done = capsys.readouterr()
    assert "1 empty lines skipped" in done.err
    assert done.out == ""


def test_ctrl_c_at_the_prompt_of_a_terminal_goes_on_and_ctrl_d_ends(llama: Path) -> None:
    master, slave = pty.openpty()
    words = [*COMMAND, str(llama), "--max-length", "60", "--temperature", "0"]
    with subprocess.Popen(
        words,
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # a shell's background job ignores SIGINT, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        os.close(slave)
        assert process.stdout is not None
        os.write(master, b"help\n")
        read_until("begins with a space", process.stdout)
        process.send_signal(signal.SIGINT)
        read_until("(quit or Ctrl-D ends)", process.stdout)
        os.write(master, b"stats\n\x04")
        rest = process.stdout.read()
    os.close(master)
    assert "nothing generated yet" in rest
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("words", "said", "status"),
    [
        (["--prompt", "x" * 200], "the prompt has 200 tokens", 2),
        (["--input", "/no/such/file"], "--input /no/such/file cannot be read", 2),
        (["--device", "cuda", "--prompt", "a"], "--device cuda", 2),
    ],
)
def test_bad_input_is_one_line_and_a_status(
    llama: Path, words: list[str], said: str, status: int, capsys: Capture
) -> None:
    assert cli.main(["generate", str(llama), *words]) == status
    [*notes, last] = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert said in last
    assert len(notes) <= 1


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "in").write_text("one\n")
    output = tmp_path / "no" / "out"
    assert cli.main(["generate", "/no/model", "--input", str(tmp_path / "in"), "--output", str(output)]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--prompt", "a", "--input", "b"], ["--output", "b"], ["--input", "b", "--output", "b"], ["--top-p", "2"]],
)
def test_flags_that_exclude_each_other_exit_with_2(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["generate", "model", *words])
    assert f"--{words[-2].lstrip('-')}" in capsys.readouterr().err
