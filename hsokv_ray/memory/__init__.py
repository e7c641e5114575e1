"""What models remember: vector stores, the memories built on them, and the shared memory of a cluster."""
