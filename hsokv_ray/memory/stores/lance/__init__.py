"""LanceDB behind VectorStore."""
