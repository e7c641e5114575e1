"""One writer at a time: a second one is refused, a replaced one is fenced."""

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.lsm.fence import check_epoch, claim_epoch, list_epochs, lock_folder


def test_a_folder_is_locked_once_and_the_error_names_the_owner(tmp_path) -> None:
    lock = lock_folder(tmp_path)
    with pytest.raises(StoreError, match=f"already open by process {os.getpid()}"):
        lock_folder(tmp_path)
    lock.release()
    lock.release()
    lock_folder(tmp_path).release()


def test_a_takeover_passes_the_lock_and_takes_it_when_it_is_free(tmp_path) -> None:
    zombie = lock_folder(tmp_path)
    owner = lock_folder(tmp_path, takeover=True)
    assert not owner.is_held
    assert not owner.take()
    zombie.release()
    assert owner.take()
    with pytest.raises(StoreError, match="already open"):
        lock_folder(tmp_path)
    owner.release()


def test_the_lock_goes_with_the_process(tmp_path) -> None:
    code = (
        "import os, sys, pathlib; from hsokv_ray.memory.stores.lsm.fence import lock_folder; "
        "lock = lock_folder(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    lock_folder(tmp_path).release()


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_only_the_last_claim_passes_the_check(tmp_path_factory, claims) -> None:
    folder = tmp_path_factory.mktemp("store")
    epochs = [claim_epoch(folder) for _ in claims]
    assert epochs == list(range(1, len(claims) + 1))
    check_epoch(folder, epochs[-1])
    for old in epochs[:-1]:
        with pytest.raises(StoreError, match="fenced"):
            check_epoch(folder, old)
    assert len(list_epochs(folder)) <= 16


def test_claims_of_several_processes_differ(tmp_path) -> None:
    code = (
        "import sys, pathlib; from hsokv_ray.memory.stores.lsm.fence import claim_epoch; "
        "print(*(claim_epoch(pathlib.Path(sys.argv[1])) for _ in range(30)))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) for _ in range(3)]
    claimed = [int(word) for each in started for word in each.communicate()[0].split()]
    assert sorted(claimed) == list(range(1, 91))


def test_a_folder_that_is_gone_acknowledges_nothing(tmp_path) -> None:
    epoch = claim_epoch(tmp_path)
    (tmp_path / "epochs" / f"{epoch:06d}").unlink()
    with pytest.raises(StoreError, match="fenced"):
        check_epoch(tmp_path, epoch)
    (tmp_path / "epochs").rmdir()
    with pytest.raises(StoreError, match="cannot be read"):
        check_epoch(tmp_path, epoch)
