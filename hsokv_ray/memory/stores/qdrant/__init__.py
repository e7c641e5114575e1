"""Qdrant behind VectorStore: its engine in this process, or a server."""
