"""Run the documents' whole life, killed at the first file operation, then at the second, until it survives.

    python tests/chaos/documents_die_everywhere.py FOLDER STEP

After each death the folder is opened again and compared with what was acknowledged. Each life is a fork of this
process, which itself never starts a thread. Prints how many deaths there were.
"""

import hashlib
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from serve.documents import DocumentLimits, Documents

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "os.link"}
BIG = "text that comes in two parts, é. " * 20
Say = Callable[[int], None]


def opened(folder: Path) -> Documents:
    return Documents(folder, DocumentLimits(free_bytes=0))


def put(documents: Documents, owner: str, text: str, **plan: object) -> str:
    upload = documents.begin(owner, **plan)  # type: ignore[arg-type]
    documents.write(owner, upload.id, 0, text.encode())
    return documents.finish(owner, upload.id).listed.document.id


def named(documents: Documents, name: str) -> str:
    return next(each.document.id for each in documents.listing("ann").items if each.document.name == name)


def live(folder: Path, say: Say) -> None:
    """Upload, append, delete, break off, go on; say each number when its call has returned."""
    documents = opened(folder)
    for number in range(3):
        put(documents, "ann", f"text {number}", name=f"d{number}")
        say(number + 1)
    put(documents, "ann", ", and more", document_id=named(documents, "d0"))
    say(4)
    put(documents, "ann", '{"text": "a page"}\n', kind="pages", document_id=named(documents, "d0"))
    say(5)
    documents.delete(named(documents, "d1"), "ann")
    say(6)
    put(documents, "ben", "text 2", name="d2")
    say(7)
    source = BIG.encode()
    digest = hashlib.sha256(source).hexdigest()
    upload = documents.begin("ann", name="big", digest=digest, num_bytes=len(source), resumable=True)
    say(8)
    documents.write("ann", upload.id, 0, source[:101])
    documents.flush("ann", upload.id)
    say(9)
    documents.close()
    documents = opened(folder)
    say(10)
    documents.write("ann", upload.id, 101, source[101:])
    documents.finish("ann", upload.id)
    say(11)
    put(documents, "ann", '{"text": "é", "page": 1}\n{"text": "b"}', kind="pages", name="pages")
    say(12)
    documents.close()


def state(number: int) -> dict[tuple[str, str], str]:
    """What is there after step `number`: owner and name -> text."""
    there = {("ann", f"d{i}"): f"text {i}" for i in range(min(number, 3))}
    if number >= 4:
        there["ann", "d0"] += ", and more"
    if number >= 5:
        there["ann", "d0"] += "\n\na page"
    if number >= 6:
        del there["ann", "d1"]
    if number >= 7:
        there["ben", "d2"] = "text 2"
    if number >= 11:
        there["ann", "big"] = BIG
    if number >= 12:
        there["ann", "pages"] = "é\n\nb"
    return there


def check(folder: Path, acknowledged: int) -> None:
    """Compare what is there with the last step that was acknowledged; the one after it may be done too, whole."""
    documents = opened(folder)
    documents.check_integrity()
    found = {
        (owner, each.document.name): documents.text(each.document.id, owner).text
        for owner in ("ann", "ben")
        for each in documents.listing(owner).items
    }
    assert found in (state(acknowledged), state(acknowledged + 1)), (found, acknowledged)
    if acknowledged in (8, 9, 10):
        digest = hashlib.sha256(BIG.encode()).hexdigest()
        again = documents.begin("ann", name="big", digest=digest, num_bytes=len(BIG.encode()), resumable=True)
        if again.stored is None:
            assert again.offset >= (101 if acknowledged >= 9 else 0), (again.offset, acknowledged)
            documents.write("ann", again.id, again.offset, BIG.encode()[again.offset :])
            documents.finish("ann", again.id)
        assert documents.text(named(documents, "big"), "ann").text == BIG
    id = put(documents, "ann", "after the death", name="after")
    documents.close()
    documents = opened(folder)
    documents.check_integrity()
    assert documents.text(id, "ann").text == "after the death"
    for each in documents.listing("ann").items:
        documents.delete(each.document.id, "ann")
    documents.check_integrity()
    documents.close()


def die_at(boundary: int, folder: Path) -> None:
    """Kill this process at the file operation in `folder` that comes after `boundary` others."""
    left = boundary

    def hook(event: str, arguments: tuple) -> None:
        nonlocal left
        if event in EVENTS and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def in_fork(work: Callable[[], None]) -> int:
    """Run `work` in a child; return its exit status, minus the signal's number where one killed it."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_once(folder: Path, boundary: int) -> bool:
    """Return whether the process died at `boundary`, and check what it left."""
    reader, writer = os.pipe()

    def work() -> None:
        die_at(boundary, folder)
        live(folder, lambda number: os.write(writer, bytes([number])))

    status = in_fork(work)
    os.close(writer)
    acknowledged = max(os.read(reader, 100), default=0)
    os.close(reader)
    assert status in (0, -signal.SIGKILL), status
    assert in_fork(lambda: check(folder, acknowledged)) == 0, f"after death at file operation {boundary}"
    return status != 0


def main() -> None:
    """Die at every STEPth file operation."""
    root, step, boundary, num_deaths = Path(sys.argv[1]), int(sys.argv[2]), 0, 0
    while die_once(root / f"{boundary}", boundary):
        shutil.rmtree(root / f"{boundary}", ignore_errors=True)
        boundary, num_deaths = boundary + step, num_deaths + 1
    print(num_deaths)


if __name__ == "__main__":
    main()
