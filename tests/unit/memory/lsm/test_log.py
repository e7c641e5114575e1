"""The log: what was acknowledged is read back, what was cut short is cut, anything else that is wrong is found."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.lsm.log import LogWriter, Tail, delete_before, list_logs, read_log, read_writes
from hsokv_ray.memory.stores.lsm.records import HEADER_BYTES, Write, encode_delete, encode_upsert, split
from hsokv_ray.memory.stores.types import Rows

IDS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), unique=True, max_size=5)


@st.composite
def writes(draw: st.DrawFn) -> tuple[list[str], Rows | None, str | None]:
    ids = draw(IDS)
    request_id = draw(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5))
    if draw(st.booleans()):
        return ids, None, request_id
    dim = draw(st.integers(1, 5))
    vectors = np.array(
        draw(st.lists(st.floats(width=32, allow_nan=False), min_size=len(ids) * dim, max_size=len(ids) * dim))
    )
    metadata = [draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=6)).encode() for _ in ids]
    return ids, Rows(ids, vectors.astype(np.float32).reshape(len(ids), dim), metadata), request_id


def rows(*ids: str, value: float = 1.0, dim: int = 3) -> Rows:
    return Rows(list(ids), np.full((len(ids), dim), value, np.float32), [b'{"n":1}'] * len(ids))


def read(folder: Path, after: int = 0) -> tuple[list[Write], Tail]:
    tail = Tail(after)
    return list(read_writes(folder, after=after, tail=tail)), tail


def same(write: Write, ids: list[str], expected: Rows | None, request_id: str | None) -> bool:
    if (write.ids, write.request_id, write.rows is None) != (ids, request_id, expected is None):
        return False
    if expected is None or write.rows is None:
        return True
    return write.rows.metadata == expected.metadata and np.array_equal(
        write.rows.vectors, expected.vectors, equal_nan=True
    )


@given(st.lists(writes(), max_size=6), st.integers(1, 3), st.integers(0, 2**40))
@settings(max_examples=60)
def test_writes_are_read_back_in_order_over_any_number_of_files(tmp_path_factory, given_writes, group, seq) -> None:
    folder = tmp_path_factory.mktemp("log")
    log = LogWriter(folder, epoch=3, seq=seq, rotate_bytes=200)
    encoded = [encode_delete(ids, r) if rows is None else encode_upsert(rows, r) for ids, rows, r in given_writes]
    for start in range(0, len(encoded), group):
        log.write(encoded[start : start + group], sync=True)
    log.close()
    found, tail = read(folder, seq)
    assert [write.seq for write in found] == list(range(seq + 1, seq + 1 + len(encoded)))
    assert all(same(write, *asked) for write, asked in zip(found, given_writes, strict=True))
    assert (tail.seq, tail.torn_bytes) == (seq + len(encoded), 0)


def written(folder: Path, *, close: bool) -> tuple[Path, list[int]]:
    """One file with three writes; returns it and the offset at which each entry ends."""
    log = LogWriter(folder, epoch=1, seq=0)
    log.write([encode_upsert(rows("a", "b"))], sync=True)
    log.write([encode_delete(["a"], "request"), encode_upsert(rows("é", value=0.0))], sync=True)
    log.close() if close else log.abandon()
    path = folder / str(list_logs(folder)[0])
    return path, [entry.end for entry in read_log(path).entries]


def test_a_file_torn_at_any_byte_keeps_every_write_before_it(tmp_path) -> None:
    path, ends = written(tmp_path, close=False)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        found, tail = read(tmp_path)
        kept = [end for end in ends[1:] if end <= size]
        assert [write.seq for write in found] == list(range(1, len(kept) + 1))
        if size >= ends[0]:
            assert tail.torn_bytes == size - ([ends[0], *kept][-1])


def test_blocks_that_were_never_written_count_as_torn(tmp_path) -> None:
    path, ends = written(tmp_path, close=False)
    whole = path.read_bytes()
    for size in range(ends[1], len(whole) - 4):
        path.write_bytes(whole[:size] + bytes(len(whole) - size))
        found, _ = read(tmp_path)
        assert [write.seq for write in found] == [1, 2][: sum(end <= size for end in ends[1:3])]


@pytest.mark.parametrize("close", [True, False])
def test_every_flipped_bit_is_found(tmp_path, close) -> None:
    path, _ = written(tmp_path, close=close)
    whole = path.read_bytes()
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=rf"{path.name} is damaged at byte \d+"):
            read(tmp_path)


@pytest.mark.parametrize("name_kept", [1, 2])
def test_a_file_that_is_missing_is_found(tmp_path, name_kept) -> None:
    log = LogWriter(tmp_path, epoch=1, seq=0, rotate_bytes=1)
    for name in "abc":
        log.write([encode_upsert(rows(name))], sync=True)
    log.close()
    (tmp_path / str(list_logs(tmp_path)[name_kept])).unlink()
    with pytest.raises(StoreError, match="ends at write|missing"):
        read(tmp_path)


def test_a_fenced_writers_late_writes_are_passed_over(tmp_path) -> None:
    zombie = LogWriter(tmp_path, epoch=1, seq=0, rotate_bytes=400)
    zombie.write([encode_upsert(rows("a"))], sync=True)
    owner = LogWriter(tmp_path, epoch=2, seq=1)
    for _ in range(4):  # into a second file too
        zombie.write([encode_upsert(rows("zombie"))], sync=True)
    zombie.abandon()
    owner.write([encode_upsert(rows("b"))], sync=True)
    owner.close()
    assert [write.ids for write in read(tmp_path)[0]] == [["a"], ["b"]]
    (tmp_path / "000001-000000.log").write_bytes((tmp_path / "000001-000000.log").read_bytes()[:-3])
    assert [write.ids for write in read(tmp_path)[0]] == [["a"], ["b"]]


def test_files_are_deleted_once_nothing_in_them_is_needed(tmp_path) -> None:
    log = LogWriter(tmp_path, epoch=1, seq=0, rotate_bytes=1)
    for name in "abcd":
        log.write([encode_upsert(rows(name))], sync=True)
    log.close()
    assert delete_before(tmp_path, 2) == 3  # one is empty
    assert [write.ids for write in read(tmp_path, after=2)[0]] == [["c"], ["d"]]
    with pytest.raises(StoreError, match="the writes 2 to 2 are missing"):
        read(tmp_path, after=1)
    delete_before(tmp_path, 100)
    assert len(list_logs(tmp_path)) == 1  # the newest one stays: it says how far the log goes


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.lsm.log import LogWriter
from hsokv_ray.memory.stores.lsm.records import encode_upsert
from hsokv_ray.memory.stores.types import Rows

def rows(name, n):
    return Rows([name], np.ones((1, n), np.float32), [b"{}"])

log = LogWriter(Path(sys.argv[1]), epoch=1, seq=0)
log.write([encode_upsert(rows("before", 10))], sync=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
for attempt in range(2):
    try:
        log.write([encode_upsert(rows("small", 10)), encode_upsert(rows("too large", 10_000))], sync=True)
    except StoreError as error:
        print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log.write([encode_upsert(rows("after", 10_000))], sync=True)
"""


def test_a_full_disk_takes_nothing_of_a_write_and_the_next_one_works(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("no room for log ") and "what was there before is safe" in line for line in lines)
    found, tail = read(tmp_path)
    assert [write.ids for write in found] == [["before"], ["after"]]
    assert tail.torn_bytes == 0


def test_a_file_that_cannot_be_created_fails_the_write_and_a_later_one_works(tmp_path) -> None:
    log = LogWriter(tmp_path, epoch=1, seq=0, rotate_bytes=1)
    (tmp_path / "000001-000001.log").mkdir()  # in the way
    with pytest.raises(StoreError, match=r"log .*000001-000001\.log cannot be written"):
        log.write([encode_upsert(rows("a"))], sync=True)
    (tmp_path / "000001-000001.log").rmdir()
    log.write([encode_upsert(rows("b"))], sync=True)
    log.close()
    assert [(write.seq, write.ids) for write in read(tmp_path)[0]] == [(1, ["b"])]


@given(st.binary(max_size=200))
def test_any_bytes_split_into_nothing_or_whole_entries(data) -> None:
    found = split(data)
    assert (found.stop is None) == (sum(HEADER_BYTES + len(entry.payload) + 4 for entry in found.entries) == len(data))


def test_large_writes_of_many_pieces_are_whole(tmp_path) -> None:
    many = [encode_upsert(rows(f"{i}", value=float(i), dim=20_000)) for i in range(400)]  # 1200 pieces, over the limit
    log = LogWriter(tmp_path, epoch=1, seq=0)
    log.write(many, sync=False)
    log.close()
    found, _ = read(tmp_path)
    assert [float(write.rows.vectors[0, -1]) for write in found if write.rows] == list(range(400))
    assert os.path.getsize(tmp_path / "000001-000000.log") > 400 * 80_000


def test_the_limit_of_file_sizes_is_not_left_behind() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
