"""Bodies of /v1/embeddings and /v1/memory."""

from typing import Annotated, Any, ClassVar, Literal

import pydantic

from serve.errors import ApiError
from serve.wire.base import Wire

Number = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Id = Annotated[str, pydantic.Field(min_length=1, max_length=1024)]


class EmbeddingsRequest(Wire):
    """Texts to be made into vectors."""

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = {}

    input: Annotated[str, pydantic.Field(min_length=1)] | list[Annotated[str, pydantic.Field(min_length=1)]]
    """A text, or several."""
    model: str = pydantic.Field(max_length=1024)
    """Name of the encoder, as the server was given it, or the last part of that."""
    encoding_format: Literal["float", "base64"] = "float"
    """How vectors are sent: as numbers, or as base64 of little-endian float32."""
    dimensions: Annotated[int, pydantic.Field(ge=1, le=2**20)] | None = None
    """Accepted where it is what the encoder has."""
    user: str | None = None
    """Accepted and without effect."""

    @classmethod
    def refuse_unsupported(cls, values: dict[str, Any]) -> None:
        super().refuse_unsupported(values)
        given = values.get("input")
        if isinstance(given, list) and any(isinstance(each, int | list) for each in given):
            message = "input: token ids are of another tokenizer than the encoder's; send texts"
            raise ApiError(400, message, param="input", code="unsupported")

    @property
    def texts(self) -> list[str]:
        """Return the texts."""
        return [self.input] if isinstance(self.input, str) else list(self.input)


class EmbeddingBody(Wire):
    """A text as a vector."""

    object: Literal["embedding"] = "embedding"
    index: int
    """Which text."""
    embedding: list[float] | str
    """Numbers, or base64 of little-endian float32."""


class EmbeddingsUsage(Wire):
    """Tokens that the encoder read, its special ones included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(Wire):
    """The vectors, in the order of the texts."""

    object: Literal["list"] = "list"
    data: list[EmbeddingBody]
    model: str
    usage: EmbeddingsUsage


class UpsertRequest(Wire):
    """Vectors to be kept; an id that is there already gets its new vector and metadata."""

    ids: list[Id] = pydantic.Field(min_length=1)
    """One per vector."""
    vectors: list[list[Number]]
    """As many as ids, all of the collection's dimension, which its first vector decides."""
    metadata: list[dict[str, Any]] | None = None
    """A JSON object per id."""


class UpsertResponse(Wire):
    """What was kept; it is on disk."""

    upserted: int
    """Distinct ids."""


class QueryRequest(Wire):
    """What is near to some vectors."""

    vectors: list[list[Number]] = pydantic.Field(min_length=1)
    """Of the collection's dimension."""
    top_k: int = pydantic.Field(default=10, ge=1, le=1000)
    """Hits per vector, at most."""
    filter: dict[str, Any] | None = None
    """Which records may be hits, such as {"lang": "en", "year": {"$gte": 2000}}."""
    include_metadata: bool = True
    """Send the metadata of hits."""


class HitBody(Wire):
    """A record near to a query."""

    id: str
    score: float
    """Larger is nearer."""
    metadata: dict[str, Any] | None = None


class QueryResponse(Wire):
    """Hits of each vector, nearest first."""

    object: Literal["list"] = "list"
    data: list[list[HitBody]]


class DeleteRequest(Wire):
    """Records to be deleted: of these ids, or all that pass the filter."""

    ids: list[Id] | None = None
    filter: dict[str, Any] | None = None
    """{} deletes everything in the collection."""

    @pydantic.model_validator(mode="after")
    def _one(self) -> "DeleteRequest":
        if (self.ids is None) == (self.filter is None):
            raise ValueError("give either ids or a filter; the filter {} deletes everything")
        return self


class DeleteResponse(Wire):
    """What was deleted."""

    deleted: int
    """Records that were there."""
