import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import resolve_plan
from hsokv_ray.data.reading import ReadCounts, read_in_order
from hsokv_ray.errors import DataError

TEXTS = {split: [f"{split} document {i}" for i in range(40)] for split in ("train", "test")}
SHA = "0123456789abcdef0123456789abcdef01234567"


def _read(**flags):
    plan = resolve_plan(DataConfig(**flags), seed=0)
    counts = ReadCounts()
    return sorted(d.text for part in plan.parts for d in read_in_order(plan, part, split="all", counts=counts))


@pytest.fixture
def folder(tmp_path):
    """A data set folder as the hub has them: two splits in parquet."""
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split, texts in TEXTS.items():
        table = pa.table({"n": pa.array(range(40)), "text": texts})
        pq.write_table(table, tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet", row_group_size=7)
    return tmp_path / "set"


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("streaming", [True, False])
def test_a_folder_of_parquet_is_read_by_split_without_a_network(folder, tmp_path, split, streaming):
    flags = {"hf_cache_dir": str(tmp_path / "cache"), "hf_streaming": streaming, "hf_num_workers": 1}
    assert _read(source=f"hf://{folder}::{split}", **flags) == sorted(TEXTS[split])
    assert _read(hf_name=str(folder), hf_split=split, **flags) == sorted(TEXTS[split])


def test_a_folder_of_jsonl_is_read_by_the_same_code(tmp_path):
    rows = "".join(json.dumps({"content": text}) + "\n" for text in TEXTS["train"])
    (tmp_path / "train.jsonl").write_text(rows)
    assert _read(source=f"hf://{tmp_path}") == sorted(TEXTS["train"])


def test_what_datasets_saved_to_disk_is_read_in_both_forms(tmp_path):
    sets = datasets.DatasetDict({s: datasets.Dataset.from_dict({"text": t}) for s, t in TEXTS.items()})
    sets.save_to_disk(tmp_path / "dict")
    sets["train"].shuffle(seed=0).save_to_disk(tmp_path / "one", num_shards=3)
    assert _read(source=f"hf://{tmp_path}/dict::test") == sorted(TEXTS["test"])
    assert _read(source=f"hf://{tmp_path}/one") == sorted(TEXTS["train"])
    with pytest.raises(DataError, match="no split 'dev'; --hf-split can be train, test"):
        _read(source=f"hf://{tmp_path}/dict::dev")


def test_an_unknown_split_lists_those_there_are(folder):
    with pytest.raises(DataError, match="no split 'dev'; --hf-split can be train, test"):
        _read(source=f"hf://{folder}::dev")


def test_an_unknown_configuration_is_named(folder):
    with pytest.raises(DataError, match=re.escape(f"hf://{folder}:german:train: cannot be resolved")):
        _read(source=f"hf://{folder}:german")


def test_a_missing_folder_is_named_before_the_hub_is_asked(tmp_path):
    with pytest.raises(DataError, match="there is no folder '.*/absent'"):
        _read(source=f"hf://{tmp_path}/absent")


_RESOLVE = """
import json, sys
from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import resolve_plan
from hsokv_ray.data.reading import ReadCounts, read_in_order
from hsokv_ray.errors import DataError
try:
    plan = resolve_plan(DataConfig(**json.loads(sys.argv[1])), seed=0)
    texts = [d.text for p in plan.parts for d in read_in_order(plan, p, split="all", counts=ReadCounts())]
    print(json.dumps({"texts": texts, "revision": plan.revision, "plan": plan._to_json()}))
except DataError as error:
    print(json.dumps({"error": str(error)}))
"""


def _resolve_against(endpoint, home, **flags):
    """Run in a process of its own: the hub's address is read when its library is imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_TOKEN": "hf_secret"}
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", _RESOLVE, json.dumps(flags)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
    return json.loads(result.stdout.splitlines()[-1])


def test_a_hub_that_cannot_be_reached_names_the_set_the_cause_and_the_way_without(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        error = _resolve_against(endpoint, tmp_path, source="hf://org/name")["error"]
    assert "hf://org/name::train: cannot be resolved" in error
    assert "Connection refused" in error
    assert "give a local data set folder (hf:///path/to/folder) or files (--source path)" in error
    assert "\n" not in error


class _Hub(http.server.BaseHTTPRequestHandler):
    """The few calls of the hub's API that listing and streaming a data set take, over a real folder."""

    folder: Path
    requests: list[str]

    def do_GET(self):  # noqa: N802
        self._answer()

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass

    def _answer(self):
        self.requests.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
        url = urllib.parse.unquote(self.path.partition("?")[0])
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if re.fullmatch(rf"/api/datasets/org/name(/revision/(main|v1|{SHA}))?", url):
            self._json({"id": "org/name", "sha": SHA, "siblings": [], "private": False, "tags": [], "downloads": 0})
        elif match := re.fullmatch(rf"/api/datasets/org/name/tree/{SHA}(/.*)?", url):
            self._json(self._tree((match[1] or "").strip("/"), "recursive=true" in self.path.lower()))
        elif re.fullmatch(rf"/api/datasets/org/name/paths-info/{SHA}", url):
            fields = json.loads(body) if body.startswith(b"{") else urllib.parse.parse_qs(body.decode())
            self._json([self._info(self.folder / p) for p in fields["paths"] if (self.folder / p).exists()])
        elif match := re.fullmatch(rf"/datasets/org/name/resolve/{SHA}/(.*)", url):
            self._file(self.folder / match[1])
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _tree(self, path, recursive):
        found = (self.folder / path).rglob("*") if recursive else (self.folder / path).iterdir()
        return [self._info(p) for p in sorted(found)]

    def _info(self, path):
        name, is_file = str(path.relative_to(self.folder)), path.is_file()
        size = path.stat().st_size if is_file else 0
        return {"type": "file" if is_file else "directory", "path": name, "size": size, "oid": f"{hash(name):x}"}

    def _file(self, path):
        if not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
        data = path.read_bytes()
        headers = {"X-Repo-Commit": SHA, "ETag": '"x"', "Accept-Ranges": "bytes"}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, stop = int(match[1]), int(match[2] or len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
            return self._send(206, data[start:stop], headers)
        return self._send(200, data, headers)

    def _json(self, value):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status, data, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def hub(folder):
    handler = type("Hub", (_Hub,), {"folder": folder, "requests": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler.requests
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_hub_data_set_is_listed_once_pinned_and_streamed_by_ranges(hub, tmp_path):
    endpoint, requests = hub
    result = _resolve_against(endpoint, tmp_path / "home", source="hf://org/name@v1::test")
    assert "error" not in result, (result, requests)
    assert sorted(result["texts"]) == sorted(TEXTS["test"])
    assert result["revision"] == SHA
    assert f"hf://datasets/org/name@{SHA}/data/test-00000-of-00001.parquet" in result["plan"]
    assert "hf_secret" not in result["plan"]
    assert any("Bearer hf_secret" in request for request in requests)
    assert not any("resolve" in request and "/train-" in request for request in requests)


def test_a_data_set_that_the_hub_does_not_have_is_named(hub, tmp_path):
    result = _resolve_against(hub[0], tmp_path / "home", source="hf://org/other")
    assert "hf://org/other::train: cannot be resolved" in result["error"]
