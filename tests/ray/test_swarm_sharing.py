"""Agents of searches on Ray, whose memories meet in the memory actor."""

from pathlib import Path

import pytest

from hsokv_ray.config import parse
from hsokv_ray.memory.shared import MemoryConfig, connect, start_memory, stop_memory
from hsokv_ray.swarm.job import SearchJob
from hsokv_ray.swarm.search_config import SearchSwarmConfig
from hsokv_ray.swarm.sharing import SharedEntries

pytestmark = pytest.mark.usefixtures("ray_cluster")

MEMORY = "swarm-sharing"


def searched(corpus: Path, folder: Path, name: str, *, agents: int, iterations: int) -> SearchJob:
    config = parse(
        SearchSwarmConfig,
        ["--task", "language_model", "--lm-corpus", str(corpus), "--lm-seq-length", "8", "--size", "tiny",
         "--iterations", str(iterations), "--agent-steps", "2", "--num-managers", "1", "--agents-per-manager",
         str(agents), "--num-workers", str(agents), "--cpus-per-agent", "0.25", "--output-dir", str(folder),
         "--name", name, "--exploit", "none", "--share-memory", f"shared:{MEMORY}/words"],
    )  # fmt: skip
    job = SearchJob(config, show=False)
    job.search()
    return job


def test_what_two_actors_wrote_a_later_search_reads_through_the_memory_actor(corpus: Path, tmp_path: Path) -> None:
    start_memory(MemoryConfig(name=MEMORY, root=str(tmp_path / "memory")))
    try:
        searched(corpus, tmp_path, "one", agents=2, iterations=2)
        with connect(MEMORY, "words") as client:
            earlier = SharedEntries(client, "look").rows()
        later = searched(corpus, tmp_path, "two", agents=1, iterations=1)
        memory = later.best_learner().memory  # pyright: ignore[reportAttributeAccessIssue]
        with connect(MEMORY, "words") as client:
            rows = SharedEntries(client, "look").rows()
    finally:
        stop_memory(MEMORY)
    assert {row.writer for row in earlier} == {"one-0-a0", "one-0-a1"}
    assert {row.writer for row in rows} == {"one-0-a0", "one-0-a1", "two-0-a0"}
    assert len({row.id for row in rows}) == len(rows), "a row per writer and entry, however often it was published"
    assert memory.check_integrity() == []
    read = {entry: sum(row.counts["retrievals"] for row in rows if row.entry == entry) for entry in memory.ids}
    slots = memory.slots_of(memory.ids)
    assert dict(zip(memory.ids, memory.lifecycle.retrievals[slots].tolist(), strict=True)) == read
    assert any(row.entry in read and row.counts["retrievals"] > 0 for row in earlier), "of which others did a part"
