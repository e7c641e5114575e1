import dataclasses
import platform
import pydoc_data.topics
import sysconfig
from pathlib import Path

import pytest

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.plan import resolve_plan
from hsokv_ray.data.reading import ReadCounts, read_documents, read_in_order
from hsokv_ray.errors import DataError


def test_modules_and_topics_of_this_python_are_documents_and_tests_are_not():
    plan = resolve_plan(DataConfig(), seed=0)
    counts = ReadCounts()
    documents = {d.id: d.text for p in plan.parts for d in read_in_order(plan, p, split="all", counts=counts)}
    root = Path(sysconfig.get_paths()["stdlib"])
    assert documents["python://stdlib/json/decoder.py#0"] == (root / "json/decoder.py").read_text()
    assert documents["python://stdlib/topic/assert#0"] == pydoc_data.topics.topics["assert"]
    folders = {part for name in documents for part in name.split("/")[3:-1]}
    assert not folders & {"test", "tests", "site-packages", "__pycache__"}
    assert counts.text_bytes > 8_000_000
    assert counts.replaced_documents == 0


def test_streams_of_the_embedded_corpus_are_even():
    plan = resolve_plan(DataConfig(), seed=0)
    loads = [sum(part.num_bytes for part in plan.stream_parts(s, 0)) for s in range(plan.num_streams)]
    assert max(loads) <= 1.25 * sum(loads) / len(loads)


def test_a_worker_of_another_python_is_refused_naming_both():
    plan = resolve_plan(DataConfig(), seed=0)
    other = dataclasses.replace(plan, revision="python-3.9.1-0123456789abcdef")
    with pytest.raises(DataError, match=f"planned on python-3.9.1-.* runs python-{platform.python_version()}-"):
        list(read_documents(other, other.parts[0], split="all", epoch=0, counts=ReadCounts()))
