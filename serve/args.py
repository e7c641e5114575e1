"""Arguments of the application; `serve run serve.app:build model=PATH engine.max_running=4` and YAML fill one class.

Imports neither torch nor ray.
"""

import difflib
from typing import Any

import pydantic

from hsokv_ray.config import Config
from hsokv_ray.inference.engine.config import EngineConfig

LEAST_SEGMENTS_BYTES = 2**20


class Autoscaling(Config):
    """Replicas of the model that come and go with the load."""

    min_replicas: int = pydantic.Field(default=1, ge=1)
    """Replicas that always run."""

    max_replicas: int = pydantic.Field(default=2, ge=1)
    """Replicas at most."""

    target_queue: float = pydantic.Field(default=8, gt=0)
    """Requests per replica, running and waiting, that are aimed at."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Autoscaling":
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"autoscaling.min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}; lower it"
            )
        return self


class Limits(Config):
    """What one client may ask for."""

    body_bytes: int = pydantic.Field(default=16 * 2**20, ge=1024)
    """Bytes of a JSON body; documents have their own limit."""

    json_depth: int = pydantic.Field(default=32, ge=4)
    """Objects and lists inside each other in a JSON body."""

    body_timeout_s: float = pydantic.Field(default=60, gt=0)
    """Seconds a client may take to send a JSON body."""

    requests_per_owner: int = pydantic.Field(default=32, ge=1)
    """Answers of one owner at once (prompts x `n`), on each gateway replica."""

    request_timeout_s: float = pydantic.Field(default=1800, gt=0)
    """Seconds one generation may take, waiting included."""

    num_prompts: int = pydantic.Field(default=16, ge=1)
    """Prompts of one completion request."""

    num_messages: int = pydantic.Field(default=1024, ge=1)
    """Messages of one chat."""

    num_documents: int = pydantic.Field(default=8, ge=1)
    """Documents named by one request."""

    document_bytes: int = pydantic.Field(default=256 * 2**20, ge=1)
    """Bytes of one document."""

    documents_per_owner: int = pydantic.Field(default=1000, ge=1)
    """Documents one owner keeps."""

    documents_bytes_per_owner: int = pydantic.Field(default=4 * 2**30, ge=1)
    """Bytes of all documents of one owner."""

    upload_expiry_s: float = pydantic.Field(default=24 * 3600, gt=0)
    """Seconds after which an unfinished upload that nobody goes on with is removed."""

    embedding_inputs: int = pydantic.Field(default=256, ge=1)
    """Texts of one embeddings request."""

    vectors: int = pydantic.Field(default=1000, ge=1)
    """Vectors of one upsert, query or delete."""


class ServeArgs(Config):
    """The application: one model behind an OpenAI-compatible API."""

    model: str | None = None
    """Run folder, checkpoint folder, Hugging Face model folder or hub name. None: the newest checkpoint of a run."""

    name: str | None = None
    """What clients call the model. None: the last part of the path."""

    device: str = "auto"
    """Where the model runs: auto, cpu, cuda or mps."""

    threads: int | None = pydantic.Field(default=None, ge=1)
    """CPU threads of each replica. None: all cores, shared among `num_replicas`."""

    unlimited: bool = True
    """Whether a prompt past the model's window is read by retrieval, unless the request says otherwise."""

    engine: EngineConfig = EngineConfig()
    """Batching, queue and long context of a replica."""

    num_replicas: int = pydantic.Field(default=1, ge=1)
    """Replicas of the model; ignored where `autoscaling` is given."""

    autoscaling: Autoscaling | None = None
    """Let the number of replicas follow the queue."""

    num_gateways: int = pydantic.Field(default=1, ge=1)
    """Replicas of the HTTP side."""

    replica_cpus: float = pydantic.Field(default=1, ge=0)
    """Logical CPUs Ray reserves for a replica of the model."""

    replica_gpus: float = pydantic.Field(default=0, ge=0)
    """GPUs Ray reserves for a replica of the model."""

    gateway_cpus: float = pydantic.Field(default=0.1, ge=0)
    """Logical CPUs Ray reserves for a replica of the HTTP side."""

    stream_interval_ms: float = pydantic.Field(default=50, ge=0)
    """Milliseconds between the pieces of a streamed answer, at least; the first comes at once. 0: every token."""

    drain_s: float = pydantic.Field(default=30, ge=0)
    """Seconds that running streams get to finish when a replica is stopped."""

    keys_file: str | None = None
    """File of API keys, a line `name:key` each; those of HSOKV_API_KEYS come besides. Without any key only this
    machine is answered."""

    allowed_hosts: tuple[str, ...] = ()
    """Names the Host header may carry, besides those of this machine. Empty: any where there are keys, none without."""

    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may call the API from a browser. Empty: none."""

    documents_dir: str | None = None
    """Folder of documents. None: `documents` in the folder of runs."""

    segments_bytes: int | None = pydantic.Field(default=None, ge=LEAST_SEGMENTS_BYTES)
    """Bytes of the object store that encoded texts may hold. None: half of the cluster's."""

    segments_age_s: float = pydantic.Field(default=3600, gt=0)
    """Seconds after which an encoded text that nobody asked about is dropped; its document stays."""

    encoder: str | None = None
    """Encoder behind /v1/embeddings: sentence-transformers:NAME, hf:NAME or a folder. None: no embeddings."""

    memory: str | None = None
    """Name of the shared memory behind /v1/memory. None: no such routes are answered."""

    console: bool = True
    """Serve the page at /."""

    limits: Limits = Limits()
    """What one client may ask for."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _take_dotted(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        nested = _nested(values)
        for key in nested:
            if key not in cls.model_fields:
                raise ValueError(f"unknown argument {key!r}; {_suggestion(str(key), cls)}")
        return _with_long_context(nested)

    @property
    def reads_past_window(self) -> bool:
        """Whether a prompt past the window is read where the request does not say."""
        return self.unlimited and self.engine.unlimited


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with `a.b: 1` as `a: {b: 1}`: `serve run` takes words `key=value` only."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = str(key).split(".")
        inner = result
        for name in path:
            step = inner.get(name)
            inner[name] = dict(step) if isinstance(step, dict) else {}
            inner = inner[name]
        inner[last] = value
    return result


def _with_long_context(values: dict[str, Any]) -> dict[str, Any]:
    """The engine reads through long context: whoever sets one of its options need not enable it besides."""
    engine = values.get("engine")
    if not (isinstance(engine, dict) and isinstance(settings := engine.get("long_context"), dict)):
        return values
    return {**values, "engine": {**engine, "long_context": {"enabled": True, **settings}}}


def _suggestion(key: str, cls: type[Config]) -> str:
    close = difflib.get_close_matches(key.replace("-", "_"), cls.model_fields, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(cls.model_fields)}"
