"""The command's manners: help without the heavy imports, one line per error, the exit status."""

import subprocess
import sys

import pytest

from hsokv_ray import cli
from hsokv_ray.errors import ConfigError, RunError

IMPORTED = """
import sys
from hsokv_ray.cli import main
try:
    main({argv!r})
except SystemExit as end:
    assert not end.code, end.code
print(sorted({{"torch", "ray", "transformers", "datasets", "numpy"}} & set(sys.modules)))
"""


@pytest.mark.parametrize("argv", [[], ["--help"], ["generate", "--help"], ["doctor", "--help"]])
def test_help_imports_neither_torch_nor_ray(argv: list[str]) -> None:
    program = IMPORTED.format(argv=argv)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "usage: hsokv" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("raised", "status"),
    [(RunError("no room"), 1), (ConfigError("no room"), 2), (KeyboardInterrupt(), 130)],
)
def test_what_goes_wrong_becomes_a_status_and_one_line(
    raised: BaseException, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        raise raised

    assert cli.guard(work) == status
    assert capsys.readouterr().err == ("" if status == 130 else "error: no room\n")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--debug", "generate", "/does/not/exist"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("hub name\n")
    assert cli.main(["generate", "/does/not/exist"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bug_of_ours_is_not_hidden() -> None:
    def work() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.guard(work)


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["genrate"]) == 2
    assert "'genrate'; its commands: doctor, generate, memory" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error() -> None:
    program = f"import sys; sys.argv = ['hsokv', '--help']; sys.path[:0] = {sys.path!r}\n"
    program += "from hsokv_ray.cli import guard\ndef work():\n while True: print('x' * 9999)\nsys.exit(guard(work))"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
