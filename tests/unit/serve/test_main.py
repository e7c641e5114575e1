"""`python -m serve`: addresses that work, lines that can be pasted, and nothing started only to be ended."""

import ast
from pathlib import Path

import pytest
import ray

from hsokv_ray import runtime
from serve import __main__ as command


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("models.example.org", "http://models.example.org:8000"),
    ],
)
def test_the_address_that_is_asked_and_printed_is_one_that_can_be_reached(host: str, url: str) -> None:
    assert command._address(host, 8000) == url


@pytest.mark.parametrize("has_keys", [True, False])
def test_the_printed_lines_of_python_are_python_that_takes_the_key_from_the_environment(has_keys: bool) -> None:
    text = command._greeting("http://127.0.0.1:8000", "m", has_keys=has_keys)
    code = text[text.index("import os") : text.index("Ctrl-C")]
    keys = [ast.unparse(each.value) for each in ast.walk(ast.parse(code)) if getattr(each, "arg", "") == "api_key"]
    assert keys == ["os.environ['HSOKV_API_KEY']" if has_keys else "'none'"]
    assert ("Bearer $HSOKV_API_KEY" in text) == has_keys


def test_stop_starts_no_ray_where_none_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(runtime, "_CURRENT_CLUSTER", tmp_path / "none")
    before = ray.is_initialized()
    assert command.main(["stop"]) == 0
    assert ray.is_initialized() == before
    assert "no Ray runs" in capsys.readouterr().err
