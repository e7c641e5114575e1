"""Vectors: texts made into them, and collections of them in the memory that the cluster shares."""

from fastapi import APIRouter

from serve.vectors import embeddings, memory

router = APIRouter(tags=["vectors"])
router.include_router(embeddings.router)
router.include_router(memory.router)

__all__ = ["router"]
