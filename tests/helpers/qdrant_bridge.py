"""The part of Qdrant's HTTP interface that the store uses, before Qdrant's engine in this process.

    python tests/helpers/qdrant_bridge.py          # prints its port, serves 127.0.0.1 until its input ends

There is no server among Python's packages, so this stands in for one where QDRANT_URL is not set: the client, its
requests and the engine are Qdrant's; routing, the reading of JSON and what the server adds (workers, clusters, limits)
are not. Shards live in a temporary folder.
"""

import json
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

import qdrant_edge as q

SHARDS: dict[str, tuple[q.EdgeShard, dict[str, Any]]] = {}
FOLDER = tempfile.TemporaryDirectory()
LOCK = threading.RLock()
API_KEY = "bridge-key"


def condition(value: dict[str, Any]) -> Any:
    if "key" not in value:
        return filter_of(value)
    return q.FieldCondition(key=value["key"], match=q.MatchAny(any=value["match"]["any"]))


def filter_of(value: dict[str, Any] | None) -> q.Filter | None:
    if value is None:
        return None
    kinds = ("must", "should", "must_not")
    return q.Filter(**{kind: [condition(each) for each in value[kind]] for kind in kinds if value.get(kind)})


def point(record: Any) -> dict[str, Any]:
    found = {"id": str(record.id), "payload": record.payload, "vector": record.vector}
    return {**found, "score": record.score, "version": 0} if hasattr(record, "score") else found


def create(name: str, body: dict[str, Any]) -> bool:
    vectors = body["vectors"]
    distance = getattr(q.Distance, vectors["distance"])
    config = q.EdgeConfig(vectors=q.EdgeVectorParams(size=vectors["size"], distance=distance))
    folder = Path(FOLDER.name) / str(len(list(Path(FOLDER.name).iterdir())))
    folder.mkdir()
    SHARDS[name] = q.EdgeShard.create(str(folder / "shard"), config), vectors
    return True


def info(name: str) -> dict[str, Any]:
    shard, vectors = SHARDS[name]
    found = shard.info()
    hnsw = {"m": 16, "ef_construct": 100, "full_scan_threshold": 10000}
    optimizer = {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0}
    params = {"vectors": vectors, "shard_number": 1, "replication_factor": 1}
    return {
        "status": "green",
        "optimizer_status": "ok",
        "points_count": found.points_count,
        "indexed_vectors_count": found.indexed_vectors_count,
        "segments_count": found.segments_count,
        "config": {
            "params": params,
            "hnsw_config": hnsw,
            "optimizer_config": {**optimizer, "flush_interval_sec": 5},
            "wal_config": None,
        },
        "payload_schema": {key: {"data_type": "keyword", "points": 0} for key in found.payload_schema},
    }


def query(shard: q.EdgeShard, search: dict[str, Any]) -> dict[str, Any]:
    vector = search["query"]
    request = q.QueryRequest(
        limit=search["limit"],
        query=q.Query.Nearest(vector["nearest"] if isinstance(vector, dict) else vector),
        filter=filter_of(search.get("filter")),
        params=q.SearchParams(**{k: v for k, v in search["params"].items() if v is not None}),
        with_payload=search["with_payload"],
    )
    return {"points": [point(each) for each in shard.query(request)]}


def points(shard: q.EdgeShard, action: str, body: dict[str, Any]) -> Any:
    match action:
        case "PUT ":
            rows = [q.Point(UUID(each["id"]), each["vector"], each["payload"]) for each in body["points"]]
            shard.update(q.UpdateOperation.upsert_points(rows))
        case "POST ":
            ids: Any = [UUID(id) for id in body["ids"]]
            found = shard.retrieve(ids, with_payload=body["with_payload"], with_vector=body["with_vector"])
            return [point(each) for each in found]
        case "POST query/batch":
            return [query(shard, each) for each in body["searches"]]
        case "POST scroll":
            request = q.ScrollRequest(
                offset=UUID(body["offset"]) if body.get("offset") else None,
                limit=body["limit"],
                filter=filter_of(body.get("filter")),
                with_payload=body["with_payload"],
                with_vector=body["with_vector"],
            )
            found, after = shard.scroll(request)
            return {
                "points": [point(each) for each in found],
                "next_page_offset": None if after is None else str(after),
            }
        case "POST count":
            return {"count": shard.count(q.CountRequest(exact=body["exact"], filter=filter_of(body.get("filter"))))}
        case "POST delete":
            if "points" in body:
                shard.update(q.UpdateOperation.delete_points([UUID(id) for id in body["points"]]))
            else:
                shard.update(q.UpdateOperation.delete_points_by_filter(filter_of(body["filter"]) or q.Filter()))
        case _:
            raise LookupError(action)
    return {"operation_id": 0, "status": "completed"}


def answer(method: str, path: list[str], body: dict[str, Any]) -> Any:
    _, name, *rest = path
    match method, rest:
        case "GET", ["exists"]:
            return {"exists": name in SHARDS}
        case "GET", []:
            return info(name)
        case "PUT", []:
            return create(name, body)
        case "DELETE", []:
            SHARDS.pop(name)[0].close()
            return True
        case "PUT", ["index"]:
            kind = getattr(q.PayloadSchemaType, body["field_schema"].capitalize())
            SHARDS[name][0].update(q.UpdateOperation.create_field_index(body["field_name"], kind))
            return {"operation_id": 0, "status": "completed"}
        case _, ["points", *action]:
            return points(SHARDS[name][0], f"{method} {'/'.join(action)}", body)
    raise LookupError(f"{method} {path}")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_any(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            if self.headers.get("api-key") != API_KEY:
                status, content = 401, {"status": {"error": "Must provide an API key"}}
            elif self.command == "PUT" and len(path) == 2 and path[1] in SHARDS:
                status, content = 409, {"status": {"error": f"Collection `{path[1]}` already exists!"}}
            else:
                with LOCK:
                    status, content = 200, {"result": answer(self.command, path, body), "status": "ok", "time": 0.0}
        except Exception as error:  # whatever it is, the client is told
            status, content = 500, {"status": {"error": repr(error)}}
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_DELETE = handle_any

    def log_message(self, *_: object) -> None:
        """Nothing: only the port is printed."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.read()
    server.shutdown()
    FOLDER.cleanup()
