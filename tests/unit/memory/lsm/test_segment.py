"""Segments: what was written is read back, and what is damaged or foreign is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import StoreError
from hsokv_ray.manifest import write_manifest
from hsokv_ray.memory.stores.facets import compile_filter, facets, holds
from hsokv_ray.memory.stores.filters import Filter, field
from hsokv_ray.memory.stores.lsm.allowed import Allowed
from hsokv_ray.memory.stores.lsm.segment import Segment, write_segment
from hsokv_ray.memory.stores.types import Rows

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)
METADATA = st.dictionaries(st.sampled_from(["lang", "year", "é"]), st.sampled_from(["en", 1925, None, [1], True]))
FILTERS: list[Filter] = [field("lang") == "en", field("year") >= 1900, field("é").exists(), field("lang") != "en"]


def rows_of(ids: list[str], metadata: list[dict] | None = None, dim: int = 3) -> Rows:
    vectors = np.random.default_rng(len(ids)).standard_normal((len(ids), dim), np.float32)
    texts = [json.dumps(each).encode() for each in metadata or [{}] * len(ids)]
    return Rows(ids, vectors, texts)


def written(folder: Path, num_rows: int = 20) -> Path:
    write_segment(folder, rows_of([f"id{i}" for i in range(num_rows)]), kind="flat", metric="dot")
    return folder


@settings(max_examples=60)
@given(records=st.dictionaries(IDS, METADATA, max_size=30))
def test_a_segment_gives_back_its_rows_sorted_by_id(tmp_path_factory: pytest.TempPathFactory, records: dict) -> None:
    folder = tmp_path_factory.mktemp("segments") / "s"
    rows = rows_of(list(records), list(records.values()))
    write_segment(folder, rows, kind="flat", metric="l2")
    segment = Segment.open(folder, verify=True)
    n = len(records)
    order = sorted(range(n), key=lambda i: rows.ids[i])
    everywhere = list(range(n))
    assert (segment.name, segment.num_rows, segment.dim, segment.kind) == ("s", n, 3, "flat")
    assert segment.all_ids() == segment.ids(everywhere) == sorted(rows.ids)
    assert segment.metadata(everywhere) == [rows.metadata[i] for i in order]
    assert np.array_equal(segment.vectors(np.arange(n)), rows.vectors[order])
    assert segment.find([*sorted(rows.ids), "\U0010ffff" * 9]).tolist() == [*everywhere, -1]
    for filter in FILTERS:
        predicate = compile_filter(filter)
        assert predicate is not None
        expected = [holds(predicate, facets(records[id])) for id in sorted(records)]
        assert segment.mask(predicate).tolist() == expected
    for cursor in [None, *rows.ids[:3], "m"]:
        above = [i for i, id in enumerate(sorted(rows.ids)) if cursor is None or id > cursor]
        assert segment.after(cursor, 4, None).tolist() == above[:4]
        even = Allowed(np.arange(n) % 2 == 0)
        assert segment.after(cursor, 4, even).tolist() == [i for i in above if i % 2 == 0][:4]


def test_a_segment_larger_than_a_few_pages_keeps_its_order(tmp_path: Path) -> None:
    ids = [f"{i * 7919 % 5000}" for i in range(5000)]
    write_segment(tmp_path / "s", rows_of(ids), kind="ivf_sq8", metric="l2")
    segment = Segment.open(tmp_path / "s")
    assert segment.all_ids() == sorted(ids)
    assert segment.num_bytes == sum(path.stat().st_size for path in (tmp_path / "s").glob("*.[af]*"))
    _, positions = segment.search(segment.vectors([17, 4000]), 1)
    assert positions.tolist() == [[17], [4000]]


@pytest.mark.parametrize("name", ["index.faiss", "rows.arrow", "postings.arrow"])
def test_a_flipped_bit_is_found_by_verification_and_a_cut_file_always(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "s") / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(StoreError, match=f"{name} is damaged .its checksum differs.*restore the store"):
        Segment.open(tmp_path / "s", verify=True)
    path.write_bytes(content[:-8])
    for verify in (False, True):
        with pytest.raises(StoreError, match=f"{name}.*bytes where.*restore the store"):
            Segment.open(tmp_path / "s", verify=verify)
    path.unlink()
    with pytest.raises(StoreError, match="restore the store"):
        Segment.open(tmp_path / "s", verify=False)


def test_a_folder_that_this_library_did_not_write_is_not_opened(tmp_path: Path) -> None:
    folder = written(tmp_path / "s")
    (folder / "manifest.json").unlink()
    with pytest.raises(StoreError, match="never finished"):
        Segment.open(folder, verify=False)
    write_manifest(folder, extra={"format": "someone else's"})
    with pytest.raises(StoreError, match="was not written by this hsokv_ray"):
        Segment.open(folder, verify=False)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(StoreError, match="cannot be read"):
        Segment.open(folder, verify=False)


def test_files_of_two_segments_do_not_make_one(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a", 20), written(tmp_path / "b", 21)
    (first / "rows.arrow").write_bytes((second / "rows.arrow").read_bytes())
    extra = json.loads((first / "manifest.json").read_text())["extra"]
    write_manifest(first, extra=extra)
    with pytest.raises(StoreError, match="do not belong together"):
        Segment.open(first, verify=True)


def test_masks_are_remembered_and_cannot_be_changed(tmp_path: Path) -> None:
    segment = Segment.open(written(tmp_path / "s"))
    predicate = compile_filter(field("lang") != "en")
    assert predicate is not None
    mask = segment.mask(predicate)
    assert segment.mask(predicate) is mask
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = False


def test_a_closed_segment_unmaps_its_files_and_leaves_what_was_read(tmp_path: Path) -> None:
    segment = Segment.open(written(tmp_path / "s"))
    vector = segment.vectors([3])
    segment.close()
    assert np.isfinite(vector).all()
    assert not any(
        "index.faiss" in line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line
    )
