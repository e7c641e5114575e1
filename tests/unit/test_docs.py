"""Documents that cannot rot: every flag is described, every command of the README parses, every file exists."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import pytest
import readme_table
import yaml

from hsokv_ray.cli import COMMANDS as HSOKV_COMMANDS
from hsokv_ray.config import Config, flags, parse
from hsokv_ray.flag_reference import COMMANDS, reference
from hsokv_ray.inference.engine.config import EngineConfig
from hsokv_ray.longcontext.config import IndexName, LongContextConfig, Positions
from hsokv_ray.swarm.config import SwarmConfig
from serve import openapi
from serve.__main__ import _parse as parse_serve
from serve.args import Autoscaling, Limits, ServeArgs
from serve.bodies import parse as parse_body
from serve.gateway import make_app
from serve.services import Services

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
WITH_COMMANDS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/memory.md",
    "docs/long-context.md",
    "docs/serving.md",
    "docs/swarm.md",
)


def blocks(text: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)


def commands(*names: str) -> list[str]:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in names]
    whole = [block.replace("\\\n", " ") for text in texts for block in blocks(text)]
    lines = [line for block in whole for line in block.splitlines() if line.strip()]
    return [line.split(" #")[0].strip() for line in lines]


def test_the_flag_reference_is_what_the_configuration_says() -> None:
    written = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert written == reference(), "run: python -m hsokv_ray.flag_reference > docs/flags.md"


def test_the_readme_has_the_targets_of_the_committed_results() -> None:
    assert readme_table.with_table(README) == README, "run: python benchmarks/readme_table.py"
    for path, names in readme_table.SECTIONS.items():
        text = path.read_text(encoding="utf-8")
        for name in names:
            assert readme_table.with_section(text, name) == text, "run: python benchmarks/readme_table.py"


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


def test_the_documents_say_at_which_loss_an_order_has_failed() -> None:
    number = ("first", "second", "third", "fourth", "fifth")[SwarmConfig().max_restarts]
    assert f"at the {number} loss the order has failed" in (ROOT / "docs" / "swarm.md").read_text(encoding="utf-8")


def rows_under(heading: str) -> list[list[str]]:
    """Return the cells of the tables of docs/serving.md under `heading`, up to the next one."""
    _, _, rest = SERVING.partition(f"\n{heading}\n")
    section = re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]
    return [row.split("|")[1:-1] for row in section.splitlines() if row.startswith("| ")]


@pytest.mark.parametrize(
    ("heading", "cls"),
    [
        ("### The application", ServeArgs),
        ("### `autoscaling`", Autoscaling),
        ("### `engine`", EngineConfig),
        ("### `limits`", Limits),
    ],
)
def test_every_setting_of_the_server_is_in_its_table_and_no_other(heading: str, cls: type[Config]) -> None:
    documented = {name for cells in rows_under(heading) for name in re.findall(r"`(\w+)`", cells[0])}
    assert documented == set(cls.model_fields)


@functools.cache
def api() -> dict[str, Any]:
    """Return the description of the API, made without anything behind it."""
    return make_app(Services(generator=None, documents=None, segments=None, args=ServeArgs())).openapi()


def test_every_route_of_the_api_is_in_its_table_and_no_other() -> None:
    routes = {f"{method.upper()} {path}" for path, methods in api()["paths"].items() for method in methods}
    documented = {name for cells in rows_under("## The API") for name in re.findall(r"`([A-Z]+ \S+)`", cells[0])}
    assert documented == routes | {"GET /openapi.json"}


def asked(words: list[str]) -> tuple[str, str, list[str]]:
    """Return method, path and JSON bodies of a `curl`."""
    valued = {"-H": [], "-d": [], "-X": [], "-F": [], "--data-binary": []}
    places, rest = [], iter(words[1:])
    for word in rest:
        if word in valued:
            valued[word].append(next(rest))
        elif word != "-N":
            places.append(word)
    [place] = places
    sends = valued["-d"] or valued["-F"] or valued["--data-binary"]
    method = valued["-X"][0] if valued["-X"] else "POST" if sends else "GET"
    return method.lower(), urlsplit(place).path, valued["-d"]


def check_curl(words: list[str]) -> None:
    """The route exists, and the body is one that it takes."""
    method, path, bodies = asked(words)
    found = [
        operations[method]
        for pattern, operations in api()["paths"].items()
        if method in operations and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", pattern), path)
    ]
    assert found, f"no route {method} {path}"
    for body in bodies:
        reference = found[0]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        [cls] = [each for each in openapi.BODIES if each.__name__ == reference.rpartition("/")[2]]
        parse_body(cls, body.encode(), most_deep=32)


def check_export(words: list[str]) -> None:
    name = words[1].partition("=")[0]
    files = ("hsokv_ray/env.py", "cluster/local.sh", "cluster/compose.yaml")
    assert any(name in (ROOT / file).read_text() for file in files), f"nobody reads {name}"


def check_serve(words: list[str]) -> None:
    if words[1] == "run":
        assert words[2] == "serve.app:build"
        ServeArgs.model_validate(dict(word.split("=", 1) for word in words[3:]))
    else:
        assert words[1] == "deploy"
        assert (ROOT / words[2]).exists()


def check_compose(words: list[str]) -> None:
    assert words[1:3] == ["compose", "-f"]
    services = yaml.safe_load((ROOT / words[3]).read_text())["services"]
    assert words[4] == "up"
    assert {word for word in words[5:] if not word.startswith("-")} <= set(services)


def check_kubectl(words: list[str]) -> None:
    if words[1] == "apply":
        assert (ROOT / words[3]).exists()
    else:
        assert words[1:4] == ["create", "secret", "generic"]
        assert f"secretName: {words[4]} " in (ROOT / "cluster/kuberay/rayservice.yaml").read_text()


CHECKS = {
    "curl": check_curl,
    "export": check_export,
    "serve": check_serve,
    "docker": check_compose,
    "kubectl": check_kubectl,
}


def parse_server(words: list[str]) -> None:
    """Parse the flags of `python -m serve`; the file of `--config` is the reader's own."""
    parse_serve(words[2:] if words[:1] == ["--config"] else words)


def parsed_by(words: list[str]) -> type[Config] | None:
    """Return the configuration class a command of the documents is for, and check its flags by parsing them."""
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :] if "--" in words else words[3:]
    if words[:3] == ["python", "-m", "serve"]:
        parse_server(words[3:])
        return ServeArgs
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
                if target.startswith("ARGS="):
                    parse_server(shlex.split(target.removeprefix("ARGS=")))
                else:
                    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), target
        elif words[0] == "eval":
            script = re.search(r"\$\((\S+) (\w+)\)", part)
            assert script, part
            assert (ROOT / script[1]).exists()
        elif words[0] in CHECKS:
            CHECKS[words[0]](words)
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
    assert "--seed" in done.stdout
