"""Tenants: a key opens its own collections and no others."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.memory.shared.tenants import Tenants

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)


@given(tenants=st.sets(NAMES.filter(lambda name: name != "default"), min_size=1, max_size=5), collection=NAMES)
def test_no_two_tenants_share_a_folder_and_each_key_opens_one(
    tmp_path_factory: pytest.TempPathFactory, tenants: set[str], collection: str
):
    registry = Tenants(tmp_path_factory.mktemp("root"))
    keys = {tenant: registry.add(tenant) for tenant in tenants}
    assert {tenant: registry.resolve(key) for tenant, key in keys.items()} == {tenant: tenant for tenant in tenants}
    folders = {registry.folder(registry.resolve(key), collection) for key in [*keys.values(), None]}
    assert len(folders) == len(tenants) + 1
    for folder in folders:
        folder.mkdir(parents=True)
    for tenant in tenants:
        assert registry.collections(tenant) == [collection]


@given(collection=st.text())
def test_a_collection_never_leaves_its_tenant(tmp_path_factory: pytest.TempPathFactory, collection: str):
    root = tmp_path_factory.getbasetemp()
    registry = Tenants(root)
    home = root / "collections" / "acme"
    try:
        folder = registry.folder("acme", collection)
    except DataError:
        return
    assert folder.resolve().parent == home.resolve()


def test_keys_are_not_kept_and_a_new_one_replaces_the_old(tmp_path: Path):
    registry = Tenants(tmp_path)
    old = registry.add("acme")
    new = registry.add("acme")
    assert Tenants(tmp_path).resolve(new) == "acme"
    with pytest.raises(StoreError, match="does not know the key"):
        registry.resolve(old)
    assert new not in (tmp_path / "tenants.json").read_text()
    assert registry.remove("acme")
    assert not registry.remove("acme")
    with pytest.raises(StoreError, match="does not know the key"):
        registry.resolve(new)


def test_without_a_key_one_is_the_default_tenant_unless_keys_are_required(tmp_path: Path):
    assert Tenants(tmp_path).resolve(None) == "default"
    with pytest.raises(StoreError, match="HSOKV_MEMORY_KEY"):
        Tenants(tmp_path, require_key=True).resolve(None)


def test_a_key_added_by_another_process_is_known_at_once(tmp_path: Path):
    here, there = Tenants(tmp_path), Tenants(tmp_path)
    with pytest.raises(StoreError):
        here.resolve("hk-unknown")
    assert here.resolve(there.add("acme")) == "acme"
    assert set(json.loads((tmp_path / "tenants.json").read_text())) == {"acme"}
    assert (tmp_path / "tenants.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["", "default", "a/b", "..", "a b", "é"])
def test_tenant_names_are_plain(tmp_path: Path, name: str):
    with pytest.raises(ConfigError, match="tenant"):
        Tenants(tmp_path).add(name)
