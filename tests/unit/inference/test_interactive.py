"""The prompt loop, driven line by line."""

from collections.abc import Callable

import pytest

from hsokv_ray.inference.config import SamplingConfig
from hsokv_ray.inference.generation import Generator
from hsokv_ray.inference.interactive import Session

SAMPLING = SamplingConfig(seed=1, max_length=8)
Say = Callable[..., str]


@pytest.fixture
def sessions() -> list[Session]:
    return []


@pytest.fixture
def say(generator: Generator, sessions: list[Session]) -> Say:
    """`say(line, ...)`: what a session answers to these lines; an exception among them is raised by the reader."""

    def run(*lines: str | type[BaseException]) -> str:
        out: list[str] = []
        script = iter([*lines, EOFError])

        def read() -> str:
            line = next(script)
            if isinstance(line, str):
                return line
            raise line

        sessions.append(Session(generator, SAMPLING, read=read, write=out.append))
        sessions[-1].run()
        assert next(script, None) is None or lines[-1] in ("quit", "exit")
        return "".join(out)

    return run


def test_text_is_completed_with_its_numbers(say: Say, generator: Generator) -> None:
    answer = say("The quick")
    assert answer.startswith("The quick" + generator.generate("The quick", SAMPLING).text)
    assert "8 tokens in" in answer
    assert "seed 1" in answer


def test_set_changes_what_comes_next(say: Say, generator: Generator) -> None:
    greedy = generator.generate("The quick", SamplingConfig(temperature=0, max_length=3)).text
    answer = say("set temperature 0", "set --max-length 3", "The quick")
    assert answer.startswith(f"temperature = 0.0\nmax_length = 3\nThe quick{greedy}\n[3 tokens")


def test_set_alone_shows_every_setting(say: Say) -> None:
    answer = say("set")
    assert all(f"{name} = " in answer for name in SamplingConfig.model_fields)


def test_a_seed_can_be_unset(say: Say, sessions: list[Session]) -> None:
    assert "seed = None" in say("set seed none")
    assert sessions[-1].sampling.seed is None


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("set temprature 1", "did you mean temperature?"),
        ("set the table for two", "begin with a space"),
        ("set zzz 1", "settings: max_length"),
        ("set top_p 3", "--top-p: got"),
        ("set temperature hot", "--temperature: got 'hot'"),
    ],
)
def test_a_wrong_setting_is_explained_and_changes_nothing(
    say: Say, sessions: list[Session], line: str, hint: str
) -> None:
    answer = say(line)
    assert answer.startswith("error: ")
    assert hint in answer
    assert answer.strip().count("\n") == 0
    assert sessions[-1].sampling == SAMPLING


def test_a_line_that_begins_with_a_space_is_text(say: Say, sessions: list[Session]) -> None:
    say(" set", " quit now")
    assert [completion.prompt for completion in sessions[-1].completions] == ["set", "quit now"]


def test_stats_add_up(say: Say) -> None:
    assert say("stats") == "nothing generated yet\n\n"
    assert "2 texts, 16 tokens in" in say("one", "two", "stats")


def test_help_names_every_command(say: Say) -> None:
    answer = say("help")
    assert all(word in answer for word in ("set NAME VALUE", "stats", "help", "quit", "exit", "Ctrl-D", "Ctrl-C"))


@pytest.mark.parametrize("word", ["quit", "exit"])
def test_quit_ends_before_the_next_line(say: Say, sessions: list[Session], word: str) -> None:
    say(word)
    assert sessions[-1].completions == []


def test_ctrl_c_at_the_prompt_goes_on(say: Say, sessions: list[Session]) -> None:
    assert "(quit or Ctrl-D ends)" in say(KeyboardInterrupt, "The quick")
    assert len(sessions[-1].completions) == 1


def test_a_prompt_that_is_too_long_is_an_error_and_the_session_goes_on(say: Say, sessions: list[Session]) -> None:
    answer = say("x" * 100, "", "The quick")
    assert answer.startswith("error: the prompt has 100 tokens")
    assert len(sessions[-1].completions) == 1
