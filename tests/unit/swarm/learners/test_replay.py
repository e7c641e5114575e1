"""The reservoir is uniform, the replay holds what it says within its bytes, and the class memory stays sound."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hsokv_ray.errors import ConfigError
from hsokv_ray.swarm.learners.class_memory import ClassMemory
from hsokv_ray.swarm.learners.replay import NOWHERE, ImageReplay, Reservoir, generator_of, generator_state

SHAPE = (4, 4, 3)


def image(number: int) -> np.ndarray:
    return np.full(SHAPE, number, np.uint8)


def test_every_example_is_kept_with_the_same_chance() -> None:
    capacity, num, runs = 5, 20, 4000
    kept = np.zeros(num)
    rng = np.random.default_rng(0)
    for _ in range(runs):
        reservoir, places = Reservoir(capacity), np.full(capacity, -1)
        for begin in range(0, num, 3):
            count = min(3, num - begin)
            for row, place in enumerate(reservoir.offer(count, rng)):
                if place != NOWHERE:
                    places[place] = begin + row
        kept[places] += 1
    # 5 standard deviations of a binomial around capacity / num
    spread = 5 * np.sqrt(runs * 0.25 * 0.75)
    assert np.abs(kept - runs * capacity / num).max() < spread


@given(st.lists(st.integers(0, 7), max_size=12), st.integers(1, 6), st.integers(0, 99))
def test_the_replay_holds_images_with_their_own_labels_within_its_bytes(batches, capacity, seed) -> None:
    bytes_each = int(np.prod(SHAPE)) + 1
    replay, rng, shown = ImageReplay(capacity * bytes_each + 3, SHAPE), np.random.default_rng(seed), 0
    for num in batches:
        numbers = np.arange(shown, shown + num)
        replay.offer(np.array([image(n) for n in numbers.tolist()]).reshape(-1, *SHAPE), numbers, rng)
        shown += num
        assert len(replay) == min(shown, capacity)
        assert replay.num_bytes == len(replay) * bytes_each <= capacity * bytes_each + 3
        images, labels = replay.sample(4, rng)
        assert len(set(labels.tolist())) == len(labels) == min(4, len(replay))
        assert (images == labels[:, None, None, None]).all()


def test_a_loaded_replay_goes_on_as_the_one_it_came_from() -> None:
    first, rng = ImageReplay(300, SHAPE), np.random.default_rng(3)
    numbers = np.arange(40)
    first.offer(np.array([image(n) for n in numbers.tolist()]), numbers, rng)
    second, again = ImageReplay(300, SHAPE), generator_of(generator_state(rng))
    second.load(first.tensors(), first.reservoir.num_seen)
    for replay, generator in ((first, rng), (second, again)):
        replay.offer(np.array([image(n) for n in (numbers + 40).tolist()]), numbers + 40, generator)
    assert (first.images == second.images).all()
    assert (first.labels == second.labels).all()


def test_what_a_replay_returned_is_not_changed_by_what_comes_later() -> None:
    replay, rng = ImageReplay(300, SHAPE), np.random.default_rng(0)
    replay.offer(np.array([image(n) for n in range(10)]), np.arange(10), rng)
    before = replay.tensors()
    copy = {name: tensor.clone() for name, tensor in before.items()}
    replay.offer(np.array([image(n) for n in range(10, 90)]), np.arange(10, 90), rng)
    assert all(torch.equal(before[name], copy[name]) for name in before)


def test_too_few_bytes_for_one_example_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 places"):
        ImageReplay(10, SHAPE)
    with pytest.raises(ConfigError, match="0 places"):
        ClassMemory(50, 16, 4, threshold=0.0)


@given(st.lists(st.integers(1, 9), max_size=10), st.integers(0, 99))
def test_the_class_memory_keeps_to_its_bytes_and_each_key_to_its_label(batches, seed) -> None:
    key_dim, num_labels, capacity = 6, 3, 8
    num_bytes = capacity * 4 * (key_dim + num_labels)
    memory, rng = ClassMemory(num_bytes, key_dim, num_labels, threshold=-1.0), np.random.default_rng(seed)
    generator, shown, labels = torch.Generator().manual_seed(seed), 0, {}
    for num in batches:
        ids = [str(shown + row) for row in range(num)]
        of = torch.randint(num_labels, (num,), generator=generator)
        memory.offer(torch.randn(num, key_dim, generator=generator), of, ids, rng)
        labels |= dict(zip(ids, of.tolist(), strict=True))
        shown += num
        assert len(memory) == memory.num_compared == min(shown, capacity)
        assert memory.num_bytes <= num_bytes
        assert memory.entries.check_integrity() == []
        held = [labels[id] for id in memory.entries.ids]
        assert memory.labels()[: len(memory)].tolist() == held


def test_a_query_finds_its_own_entry_unless_it_is_told_not_to() -> None:
    memory, rng = ClassMemory(4000, 8, 2, threshold=-1.0), np.random.default_rng(0)
    keys = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    memory.offer(keys, torch.arange(10) % 2, [str(i) for i in range(10)], rng)
    own = memory.slots_of([str(i) for i in range(10)])
    assert memory.read(keys, 3).indices[:, 0].tolist() == own
    others = memory.read(keys, 10, but=own).indices
    assert not (others == torch.tensor(own)[:, None]).any()
    one = memory.read(keys, 3, but=[None, own[1], *[None] * 8]).indices[:, 0].tolist()
    assert one[0] == own[0]
    assert one[1] != own[1]
    assert one[2:] == own[2:]
