"""Documents that cannot rot: every flag is described, every command of the README parses, every file exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import readme_table

from hsokv_ray.cli import COMMANDS as HSOKV_COMMANDS
from hsokv_ray.config import Config, flags, parse
from hsokv_ray.flag_reference import COMMANDS, reference
from hsokv_ray.longcontext.config import IndexName, LongContextConfig, Positions

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
WITH_COMMANDS = ("README.md", "CONTRIBUTING.md", "docs/memory.md", "docs/long-context.md")


def blocks(text: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)


def commands(*names: str) -> list[str]:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in names]
    lines = [line for text in texts for block in blocks(text) for line in block.splitlines() if line.strip()]
    return [line.split(" #")[0].strip() for line in lines]


def test_the_flag_reference_is_what_the_configuration_says() -> None:
    written = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m hsokv_ray.flag_reference > docs/flags.md"


def test_the_readme_has_the_targets_of_the_committed_results() -> None:
    assert readme_table.with_table(README) == README, "run: python benchmarks/readme_table.py"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_described(command: str) -> None:
    text = reference()
    for flag in flags(COMMANDS[command]):
        row = re.search(rf"\| `{flag}` \| [^|]+ \| (.+) \|", text)
        assert row, f"{command} {flag} has no row"
        assert len(row[1]) > 10, f"{command} {flag} has no docstring"


def test_every_setting_of_long_context_is_in_its_table() -> None:
    text = (ROOT / "docs" / "long-context.md").read_text(encoding="utf-8")
    cells = [row.split("|")[1] for row in text.splitlines() if row.startswith("| `")]
    documented = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert set(LongContextConfig.model_fields) <= documented
    for value in (*get_args(IndexName), *get_args(Positions)):
        assert value in documented, f"{value} has no row"


def parsed_by(words: list[str]) -> type[Config] | None:
    """Return the configuration class a command of the documents is for, and check its flags by parsing them."""
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :] if "--" in words else words[3:]
    if words[0] == "python":
        words = words[1:]
    if words[0].startswith("jobs/"):
        parse(COMMANDS[words[0]], words[1:])
        return COMMANDS[words[0]]
    if words[0] == "hsokv":
        assert words[1] in HSOKV_COMMANDS
        if words[1] == "memory":
            parse(COMMANDS[f"hsokv memory {words[2]}"], words[3:])
            return COMMANDS[f"hsokv memory {words[2]}"]
        parse(COMMANDS[f"hsokv {words[1]}"], words[2:])
        return COMMANDS[f"hsokv {words[1]}"]
    return None


@pytest.mark.parametrize("line", commands(*WITH_COMMANDS))
def test_every_command_of_the_documents_is_one_that_exists(line: str) -> None:
    for part in line.split(" && "):
        words = shlex.split(part)
        if words[0] == "make":
            for target in words[1:]:
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
        elif words[0] == "eval":
            script = re.search(r"\$\((\S+) (\w+)\)", part)
            assert script, part
            assert (ROOT / script[1]).exists()
        else:
            assert parsed_by(words) is not None, f"nobody knows how to check {part!r}"


def test_every_file_the_documents_name_exists() -> None:
    for name in (*WITH_COMMANDS, "docs/architecture.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert (ROOT / Path(name).parent / target).exists(), f"{name} names {target}"


@pytest.mark.parametrize("script", [command for command in COMMANDS if command.startswith("jobs/")])
def test_every_job_is_executable_short_and_answers_help(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111, f"{script} has lost its executable bit"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 80
    done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--source" in done.stdout
