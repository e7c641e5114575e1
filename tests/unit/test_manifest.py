"""A folder with a manifest is complete and unchanged, or it is refused and the file named."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.errors import CheckpointError
from hsokv_ray.manifest import read_manifest, verify_manifest, write_manifest

FILES = {"config.json": b"{}", "weights/a.safetensors": bytes(range(256)), "empty": b""}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_manifest(tmp_path, extra={"step": 7})
    return tmp_path


def test_a_manifest_holds_the_sha256_of_every_file_and_what_else_was_given(folder: Path) -> None:
    manifest = verify_manifest(folder)
    assert {name: entry.sha256 for name, entry in manifest.files.items()} == {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()
    }
    assert manifest.extra == {"step": 7}


@settings(max_examples=30)
@given(position=st.integers(0, 255), bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused_and_the_file_named(
    tmp_path_factory: pytest.TempPathFactory, position: int, bit: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    (folder / "a.bin").write_bytes(FILES["weights/a.safetensors"])
    write_manifest(folder, extra={})
    content = bytearray((folder / "a.bin").read_bytes())
    content[position] ^= 1 << bit
    (folder / "a.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="a.bin is damaged"):
        verify_manifest(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        verify_manifest(folder)


def test_a_truncated_file_is_refused(folder: Path) -> None:
    (folder / "weights/a.safetensors").write_bytes(bytes(range(255)))
    with pytest.raises(CheckpointError, match="a.safetensors is damaged"):
        verify_manifest(folder)


def test_a_folder_without_a_manifest_was_never_finished(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="never finished"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 1, "files": 3, "extra": {}}', '{"format": 99}', "\xff"]
)
def test_a_damaged_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        verify_manifest(folder)


def test_writing_again_replaces_the_manifest_and_leaves_nothing_else(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"{ }")
    write_manifest(folder, extra={"step": 8})
    assert verify_manifest(folder).extra == {"step": 8}
    assert json.loads((folder / "manifest.json").read_text())["files"].keys() == FILES.keys()
    assert not list(folder.glob("*.tmp"))
