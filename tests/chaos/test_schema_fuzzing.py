"""schemathesis asks every route what its OpenAPI allows, and what it forbids: no 5xx, no undocumented answer."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.chaos

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.timeout(1800)
def test_no_route_answers_what_its_description_does_not_say(url: str, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("st")
    options = ["--phases", "examples,coverage,fuzzing", "--mode", "all", "--max-examples", "8", "--seed", "1"]
    options += ["--request-timeout", "60", "--suppress-health-check", "all", "--continue-on-failure", "--no-color"]
    done = subprocess.run(
        [str(program), "run", f"{url}/openapi.json", "--checks", CHECKS, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=1700,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "No operations" not in done.stdout, done.stdout[-2000:]
