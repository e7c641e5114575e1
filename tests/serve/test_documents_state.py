"""`Documents` against a dictionary: any order of calls, owners, restarts and expiries."""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hsokv_ray.errors import DataError
from serve.documents import DocumentLimits, Documents, intake
from serve.errors import ApiError

OWNERS = st.sampled_from(["ann", "ben"])
CONTENTS = st.sampled_from(["a", "é", "aé🧠" * 5, "same", "same\n", "\x00", "line\n\nline"])
EXPIRY_S = 100.0


@dataclass
class Known:
    """A document that must be there."""

    owner: str
    text: str
    content: tuple[str, str] | None
    """Kind and bytes as they were uploaded; None once appended to."""
    pages: list[tuple[int, int, int]] = field(default_factory=list)


@dataclass
class Going:
    """An upload that must be there."""

    owner: str
    source: bytes
    kind: str
    offset: int
    touched_s: float
    resumable: bool


def as_pages(text: str) -> tuple[bytes, str, list[tuple[int, int, int]]]:
    """`text` as JSON lines of one page per line, what the document must be, and its pages."""
    parts = text.split("\n")
    source = "".join(json.dumps({"text": part, "page": i}) + "\n" for i, part in enumerate(parts)).encode()
    pages, begin = [], 0
    for i, part in enumerate(parts):
        pages.append((begin, begin + len(part), i))
        begin += len(part) + 2
    return source, "\n\n".join(parts), pages


class DocumentsMachine(RuleBasedStateMachine):
    """Every call is made on both, and both must agree."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.now_s = 1000.0
        self.known: dict[str, Known] = {}
        self.going: dict[str, Going] = {}
        self.deleted: set[tuple[str, str]] = set()
        self.usual, intake.EVERY = intake.EVERY, 4
        self.documents = self.open()

    def open(self) -> Documents:
        limits = DocumentLimits(upload_expiry_s=EXPIRY_S, free_bytes=0)
        return Documents(self.folder.name, limits, clock=lambda: self.now_s)

    def teardown(self) -> None:
        self.documents.close()
        intake.EVERY = self.usual
        self.folder.cleanup()

    @rule()
    def restart(self) -> None:
        self.documents.close()
        self.documents = self.open()
        for upload in self.going.values():  # the clock of files is another one than this test's
            upload.touched_s = self.now_s

    @rule(seconds=st.sampled_from([1.0, EXPIRY_S / 2, EXPIRY_S]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(owner=OWNERS, text=CONTENTS, kind=st.sampled_from(["text", "pages"]))
    def upload(self, owner: str, text: str, kind: str) -> None:
        source, expected, pages = (text.encode(), text, []) if kind == "text" else as_pages(text)
        same = [id for id, each in self.known.items() if (each.owner, each.content) == (owner, (kind, source))]
        state = self.documents.begin(owner, kind=kind, digest=hashlib.sha256(source).hexdigest())
        self.expire()
        middle = len(source) // 2
        self.documents.write(owner, state.id, 0, source[:middle])
        assert self.documents.write(owner, state.id, middle, source[middle:]) == len(source)
        stored = self.documents.finish(owner, state.id)
        id = stored.listed.document.id
        assert stored.created == (not same)
        assert id in (same or [id])
        assert id not in {other for other in self.known if other not in same}
        self.known[id] = Known(owner, expected, (kind, source), pages)
        again = self.documents.finish(owner, state.id) if stored.created else stored
        assert again.listed.document.id == id

    @rule(owner=OWNERS, text=CONTENTS)
    def begin_resumable(self, owner: str, text: str) -> None:
        source = text.encode()
        digest = hashlib.sha256(source).hexdigest()
        state = self.documents.begin(owner, digest=digest, num_bytes=len(source), resumable=True)
        self.expire()
        same = [id for id, each in self.known.items() if (each.owner, each.content) == (owner, ("text", source))]
        old = [id for id, each in self.going.items() if (each.owner, each.source) == (owner, source)]
        if same:
            assert state.stored is not None
            assert [state.stored.listed.document.id] == same
        elif old:
            assert [state.id] == old
            assert state.offset == self.going[state.id].offset
            self.going[state.id].touched_s = self.now_s
        else:
            assert state.offset == 0
            self.going[state.id] = Going(owner, source, "text", 0, self.now_s, True)

    @precondition(lambda self: self.going)
    @rule(data=st.data(), back=st.integers(0, 3), size=st.integers(0, 9))
    def go_on(self, data: st.DataObject, back: int, size: int) -> None:
        id = data.draw(st.sampled_from(list(self.going)))
        upload = self.going[id]
        begin = max(0, upload.offset - back)
        part = upload.source[begin : begin + size]
        with pytest.raises(ApiError, match="go on from there"):
            self.documents.write(upload.owner, id, upload.offset + 1, part)
        upload.offset = max(upload.offset, begin + len(part))
        assert self.documents.write(upload.owner, id, begin, part) == upload.offset
        upload.touched_s = self.now_s
        assert self.documents.flush(upload.owner, id) == upload.offset

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(list(self.going)))
        upload = self.going[id]
        if upload.offset < len(upload.source):
            with pytest.raises(ApiError, match="send the rest"):
                self.documents.finish(upload.owner, id)
            return
        stored = self.documents.finish(upload.owner, id)
        del self.going[id]
        known = Known(upload.owner, upload.source.decode(), ("text", upload.source))
        assert stored.created == (stored.listed.document.id not in self.known)
        self.known[stored.listed.document.id] = known

    @precondition(lambda self: self.going)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(list(self.going)))
        self.documents.discard(self.going.pop(id).owner, id)

    @precondition(lambda self: self.known)
    @rule(data=st.data(), text=CONTENTS, kind=st.sampled_from(["text", "pages"]), knows=st.booleans())
    def append(self, data: st.DataObject, text: str, kind: str, knows: bool) -> None:
        id = data.draw(st.sampled_from(list(self.known)))
        old = self.known[id]
        source, more, pages = (text.encode(), text, []) if kind == "text" else as_pages(text)
        more = more if kind == "text" else "\n\n" + more
        offset = len(old.text.encode()) if knows else None
        state = self.documents.begin(old.owner, kind=kind, document_id=id, offset=offset)
        self.expire()
        self.documents.write(old.owner, state.id, 0, source)
        self.documents.finish(old.owner, state.id)
        first = len(old.text) + 2
        pages = [*old.pages, *((first + begin, first + end, page) for begin, end, page in pages)]
        self.known[id] = Known(old.owner, old.text + more, None, pages)
        late = self.documents.begin(old.owner, document_id=id, offset=len(old.text.encode()))
        self.documents.write(old.owner, late.id, 0, b"again")
        with pytest.raises(ApiError, match="nothing was appended"):
            self.documents.finish(old.owner, late.id)

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(list(self.known)))
        owner = self.known.pop(id).owner
        self.documents.delete(id, owner)
        self.deleted.add((id, owner))

    @precondition(lambda self: self.known)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(list(self.known)))
        known = self.known[id]
        begin = data.draw(st.integers(0, len(known.text)))
        end = data.draw(st.integers(begin, len(known.text)))
        passage = self.documents.text(id, known.owner, begin, end)
        assert passage.text == known.text[begin:end]
        assert [(page.begin, page.end, page.page) for page in passage.pages] == [
            page for page in known.pages if max(page[0], begin) < min(page[1], end)
        ]
        joined = b"".join(
            self.documents.read(id, known.owner, piece.file, offset, 3)
            for piece in self.documents.pieces(id, known.owner)
            for offset in range(0, piece.num_bytes, 3)
        )
        assert joined.decode() == known.text

    @rule()
    def sweep(self) -> None:
        before = len(self.going)
        removed = self.documents.sweep()
        self.expire()
        assert removed == before - len(self.going)

    def expire(self) -> None:
        """Forget uploads that a sweep just now must have removed."""
        self.going = {id: each for id, each in self.going.items() if each.touched_s + EXPIRY_S > self.now_s}

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "documents"):
            return
        self.documents.check_integrity()
        for owner in ("ann", "ben"):
            listing = self.documents.listing(owner, limit=100)
            found = {each.document.id: each.document.num_characters for each in listing.items}
            assert found == {id: len(each.text) for id, each in self.known.items() if each.owner == owner}
        for id, each in self.known.items():
            self.is_unknown(id, "ben" if each.owner == "ann" else "ann")
        for id, owner in self.deleted:
            self.is_unknown(id, owner)

    def is_unknown(self, id: str, owner: str) -> None:
        """Every call says the same as for an id that never was."""
        for call in (self.documents.get, self.documents.text, self.documents.pieces, self.documents.delete):
            with pytest.raises(ApiError) as caught:
                call(id, owner)
            with pytest.raises(ApiError) as never:
                call("doc-never", owner)
            assert caught.value.status == never.value.status == 404
            assert caught.value.message == never.value.message.replace("doc-never", id)


TestDocuments = DocumentsMachine.TestCase
TestDocuments.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


@pytest.fixture
def documents(tmp_path: Path) -> Iterator[Documents]:
    limits = DocumentLimits(document_bytes=100, documents_per_owner=3, bytes_per_owner=195, uploads_per_owner=2)
    # deep enough that a name which climbs out lands inside tmp_path, where nothing else writes
    made = Documents(tmp_path / "a" / "b" / "c" / "documents", limits.model_copy(update={"free_bytes": 0}))
    yield made
    made.close()


def put(documents: Documents, owner: str, data: bytes, **plan: object) -> str:
    upload = documents.begin(owner, **plan)  # type: ignore[arg-type]
    documents.write(owner, upload.id, 0, data)
    return documents.finish(owner, upload.id).listed.document.id


def test_two_owners_of_the_same_text_have_two_documents_and_deleting_one_leaves_the_other(documents: Documents) -> None:
    first, second = put(documents, "ann", b"the same"), put(documents, "ben", b"the same")
    assert first != second
    documents.delete(first, "ann")
    assert documents.text(second, "ben").text == "the same"
    documents.check_integrity()


def test_a_deleted_text_is_nowhere_on_disk(documents: Documents) -> None:
    secret = b"a word that is nowhere else"
    id = put(documents, "ann", secret)
    assert any(secret in path.read_bytes() for path in documents.root.rglob("*") if path.is_file())
    documents.delete(id, "ann")
    assert not any(secret in path.read_bytes() for path in documents.root.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["../../../escaped", "/etc/passwd", "a\x00b", "..", ".", "", "a/b\\c", "é🧠" * 50])
def test_a_name_is_never_part_of_a_path(documents: Documents, tmp_path: Path, name: str) -> None:
    around = {path for path in tmp_path.rglob("*") if not path.is_relative_to(documents.root)}
    id = put(documents, "../../ann/\x00", b"text", name=name)
    assert documents.get(id, "../../ann/\x00").document.name == name
    names = [path.relative_to(documents.root).as_posix() for path in documents.root.rglob("*")]
    assert all(set(each) <= set("abcdefghijklmnopqrstuvwxyz0123456789-./") and ".." not in each for each in names)
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(documents.root)}
    assert after == around


def test_every_limit_is_said_with_its_numbers(documents: Documents) -> None:
    upload = documents.begin("ann")
    documents.write("ann", upload.id, 0, b"x" * 100)
    with pytest.raises(ApiError, match=r"101 bytes or more; at most 100 are allowed") as large:
        documents.write("ann", upload.id, 100, b"x")
    documents.begin("ann")
    with pytest.raises(ApiError, match=r"2 unfinished uploads; 2 are allowed") as many:
        documents.begin("ann")
    first = documents.finish("ann", upload.id).listed.document.id
    put(documents, "ann", b"y" * 60)
    with pytest.raises(ApiError, match=r"uploading 3 documents; 3 are allowed") as count:  # one of them is coming
        documents.begin("ann")
    append = documents.begin("ann", document_id=put(documents, "ben", b"z") and first)
    with pytest.raises(ApiError, match=r"101 bytes or more"):
        documents.write("ann", append.id, 0, b"x")
    documents.discard("ann", append.id)
    with pytest.raises(ApiError, match=r"use 160 bytes and 40 more were sent; 195 are allowed") as total:
        documents.begin("ann", num_bytes=40, document_id=_smaller(documents))
    assert [each.value.status for each in (large, many, count, total)] == [413, 429, 507, 507]
    assert many.value.headers["Retry-After"] == "5"
    documents.check_integrity()


def _smaller(documents: Documents) -> str:
    return next(each.document.id for each in documents.listing("ann").items if each.document.num_bytes == 60)


def test_a_wrong_digest_leaves_nothing(documents: Documents) -> None:
    upload = documents.begin("ann", digest="0" * 64)
    documents.write("ann", upload.id, 0, b"text")
    with pytest.raises(DataError, match=f"the bytes that came have {hashlib.sha256(b'text').hexdigest()}"):
        documents.finish("ann", upload.id)
    assert documents.stats() == {"documents": 0, "document_bytes": 0, "uploads": 0, "damaged": 0}
    assert list((documents.root / "uploads").iterdir()) == []


def test_one_process_has_the_folder(documents: Documents) -> None:
    from hsokv_ray.errors import StoreError

    with pytest.raises(StoreError, match="in use by another process"):
        Documents(documents.root)


def test_a_disk_that_fills_up_loses_nothing_that_was_acknowledged(
    documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from serve.documents import upload as module

    def half(file: object, data: bytes) -> None:
        file.write(data[: len(data) // 2])  # type: ignore[attr-defined]
        raise OSError(errno.ENOSPC, "No space left on device")

    state = documents.begin("ann")
    documents.write("ann", state.id, 0, b"first,")
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_all", half)
        with pytest.raises(ApiError, match="disk is full") as full:
            documents.write("ann", state.id, 6, b"second")
    assert full.value.status == 507
    assert documents.write("ann", state.id, 6, b"second") == 12
    id = documents.finish("ann", state.id).listed.document.id
    assert documents.text(id, "ann").text == "first,second"


def test_a_damaged_document_is_told_of_and_hides_no_other(documents: Documents) -> None:
    bad, good = put(documents, "ann", b"one"), put(documents, "ann", b"two")
    root = documents.root
    documents.close()
    (root / "documents" / bad / "document.json").write_text("{")
    again = Documents(root)
    assert [each.document.id for each in again.listing("ann").items] == [good]
    assert again.stats()["damaged"] == 1
    assert (root / "documents" / bad).is_dir()
    again.close()


def test_a_list_goes_on_behind_a_document_newest_first(tmp_path: Path) -> None:
    documents = Documents(tmp_path, DocumentLimits(free_bytes=0), clock=lambda: 5.0)  # a clock that stands still
    ids = [put(documents, "ann", f"{i}".encode()) for i in range(7)]
    seen, after, more = [], None, True
    while more:
        listing = documents.listing("ann", limit=3, after=after)
        seen += [each.document.id for each in listing.items]
        after, more = seen[-1], listing.has_more
    assert seen == ids[::-1]
    documents.close()


def test_an_encoding_of_which_nothing_is_heard_reads_as_stored(tmp_path: Path) -> None:
    now_s = 0.0
    documents = Documents(tmp_path, clock=lambda: now_s)
    id = put(documents, "ann", b"text")
    documents.progress(id, "ann", "queued")
    for _ in range(3):
        now_s += 14
        documents.wait_on(id, "ann")
    assert documents.read_progress(id, "ann").state == "queued"
    documents.progress(id, "ann", "encoding", 0, 1000)
    now_s += 10
    documents.progress(id, "ann", "encoding", 500, 1000)
    found = documents.read_progress(id, "ann")
    assert (found.state, found.tokens_done, found.tokens_total, found.tokens_per_s) == ("encoding", 500, 1000, 50.0)
    for _ in range(3):  # others are served meanwhile
        now_s += 14
        documents.wait_on(id, "ann")
    assert documents.read_progress(id, "ann").state == "encoding"
    now_s += 16
    assert documents.read_progress(id, "ann").state == "stored"
    documents.progress(id, "ann", "ready", 1000, 1000, digest="d1")
    now_s += 1000
    assert documents.read_progress(id, "ann").state == "ready"
    upload = documents.begin("ann", document_id=id)
    documents.write("ann", upload.id, 0, b" and more")
    documents.finish("ann", upload.id)
    assert documents.read_progress(id, "ann").state == "stored"
    assert documents.delete(id, "ann") == ["d1"]
    with pytest.raises(ApiError, match="no document"):
        documents.progress(id, "ann", "ready", 1, 1)
    documents.close()


def test_uploads_of_many_threads_at_once_are_all_there(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    documents = Documents(tmp_path, DocumentLimits(free_bytes=0))
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda i: put(documents, "ann", f"text {i % 10}".encode()), range(30)))
    assert len(set(ids)) == 10
    assert [ids[i] for i in range(10)] * 3 == ids
    documents.check_integrity()
    assert documents.stats()["documents"] == 10
    assert documents.stats()["uploads"] == 0
    documents.close()
