"""The console's files as they are sent."""

from pathlib import Path

import httpx
import pytest
from served_app import Served

FOLDER = Path(__file__).parents[2] / "serve" / "console"


def test_the_pages_files_need_no_key_and_forbid_foreign_and_inline_scripts(app: Served) -> None:
    for path in ["", *(f"console/{each.name}" for each in FOLDER.iterdir())]:
        answer = httpx.get(f"{app.url}/{path}")
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert httpx.get(f"{app.url}/{path}", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


@pytest.mark.parametrize("name", ["nothing.js", "..%2fargs.py", "%2e%2e/args.py", "app.js%00", "console_routes.py"])
def test_only_the_consoles_own_files_are_served(app: Served, name: str) -> None:
    answer = httpx.get(f"{app.url}/console/{name}")
    assert answer.status_code in (401, 404)
    assert "import" not in answer.text


@pytest.mark.parametrize("path", ["console", "console/"])
def test_the_folder_leads_to_the_page_below_the_applications_own_prefix(app: Served, path: str) -> None:
    answer = httpx.get(f"{app.url}/{path}", follow_redirects=True)
    assert str(answer.url) == f"{app.url}/"
    assert answer.text == httpx.get(f"{app.url}/").text
