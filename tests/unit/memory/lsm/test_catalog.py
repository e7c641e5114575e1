"""The catalog: read back as written, refused when damaged, and then the one before it serves."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError, StoreError
from hsokv_ray.memory.stores.config import FaissConfig
from hsokv_ray.memory.stores.lsm.catalog import (
    Catalog,
    SegmentEntry,
    check_catalog,
    delete_catalogs_before,
    list_catalogs,
    load_catalogs,
    read_catalog,
    write_catalog,
)
from hsokv_ray.memory.stores.lsm.requests import LIMIT, Outcome, Requests, pack_requests, unpack_requests

REQUEST_IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def catalog(number: int, epoch: int = 1, alive: np.ndarray | None = None) -> Catalog:
    segments = (SegmentEntry("000001-000000", 9, None if alive is None else alive), SegmentEntry("b", 4, None))
    return Catalog(epoch, number, 40 + number, 30, 3, "cosine", segments, (("request", Outcome(1, 40, 7)),))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "manifests").mkdir()
    return tmp_path


def same(one: Catalog, other: Catalog) -> bool:
    masks = zip((e.alive for e in one.segments), (e.alive for e in other.segments), strict=True)
    same_masks = all((a is None and b is None) or np.array_equal(a, b) for a, b in masks)  # type: ignore[arg-type]
    return same_masks and replace(one, segments=()) == replace(other, segments=())


@given(st.lists(st.booleans(), min_size=9, max_size=9))
def test_a_catalog_is_read_back_as_it_was_written(tmp_path_factory, bits) -> None:
    folder = tmp_path_factory.mktemp("store")
    (folder / "manifests").mkdir()
    write_catalog(folder, catalog(3, alive=np.array(bits)))
    loaded = load_catalogs(folder)
    assert loaded.newest is not None
    assert same(loaded.newest, catalog(3, alive=np.array(bits)))
    assert (loaded.before, loaded.notes) == (None, ())


@given(st.lists(st.tuples(REQUEST_IDS, st.builds(Outcome, *[st.integers(0, 2**63)] * 3))))
def test_requests_are_read_back_as_they_were_packed(items) -> None:
    assert unpack_requests(pack_requests(items)) == items


def test_the_newest_epoch_wins_over_a_higher_number(folder) -> None:
    for each in (catalog(9, epoch=1), catalog(0, epoch=2), catalog(10, epoch=1)):
        write_catalog(folder, each)
    loaded = load_catalogs(folder)
    assert [(each.epoch, each.number) for each in (loaded.newest, loaded.before) if each] == [(2, 0), (1, 10)]


@pytest.mark.parametrize("suffix", [".json", ".requests"])
def test_every_flipped_bit_is_found_and_the_catalog_before_serves(folder, suffix) -> None:
    write_catalog(folder, catalog(1))
    write_catalog(folder, catalog(2, alive=np.arange(9) % 2 == 0))
    path = (folder / "manifests" / "000001-000002.json").with_suffix(suffix)
    whole = path.read_bytes()
    for bit in range(0, len(whole) * 8, 3):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        loaded = load_catalogs(folder)
        assert loaded.newest is not None
        if loaded.newest.number == 2:  # a bit within white space or the like
            assert same(loaded.newest, catalog(2, alive=np.arange(9) % 2 == 0))
        else:
            assert loaded.newest.number == 1
            assert "000001-000002.json" in loaded.notes[0]


def test_no_whole_catalog_is_an_error_and_none_at_all_is_not(folder, tmp_path) -> None:
    assert load_catalogs(folder).newest is None
    (folder / "manifests" / "000001-000000.json").write_text("{")
    with pytest.raises(StoreError, match="no catalog can be read .*000001-000000.json.* restore a snapshot"):
        load_catalogs(folder)
    assert list_catalogs(tmp_path / "nothing") == []


def test_a_catalog_of_another_version_names_both(folder, monkeypatch) -> None:
    monkeypatch.setattr("hsokv_ray.memory.stores.lsm.catalog.VERSION", 2)
    write_catalog(folder, catalog(1))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="version 2; this version reads 'hsokv-faiss-store' 1"):
        read_catalog(folder / "manifests" / "000001-000001.json")
    with pytest.raises(ConfigError, match="open the store with the version that wrote it"):
        load_catalogs(folder)


def test_old_catalogs_go_and_the_named_one_stays(folder) -> None:
    for number in range(5):
        write_catalog(folder, catalog(number))
    delete_catalogs_before(folder, catalog(3))
    assert list_catalogs(folder) == ["000001-000003.json", "000001-000004.json"]
    assert len(list((folder / "manifests").iterdir())) == 4


def test_another_metric_or_dimension_is_a_configuration_error() -> None:
    check_catalog(catalog(1), FaissConfig(path="x"))
    with pytest.raises(ConfigError, match="metric: got 'l2', but it was made with 'cosine'"):
        check_catalog(catalog(1), FaissConfig(path="x", metric="l2"))
    with pytest.raises(ConfigError, match="dim: got 4, but its vectors have 3"):
        check_catalog(catalog(1), FaissConfig(path="x", dim=4))


def test_the_latest_requests_are_remembered() -> None:
    requests = Requests(limit=100)
    for i in range(1000):
        requests.add(f"{i}", Outcome(1, i, 1))
    assert 100 <= len(requests) <= 113
    assert all(requests.get(f"{i}") == Outcome(1, i, 1) for i in range(900, 1000))
    assert requests.get("0") is None
    assert requests.get(None) is None
    assert LIMIT >= 100_000
