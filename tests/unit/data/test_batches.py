import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hsokv_ray.data import IGNORED, Blocks, make_batch
from hsokv_ray.data.batches import document_positions

EOS = 0


def blocks_of(rows, num_targets):
    return Blocks(tokens=np.array(rows, dtype=np.int64), num_targets=np.array(num_targets), first_index=3)


def test_labels_are_the_next_tokens_and_padding_has_none():
    batch = make_batch(
        blocks_of([[5, 6, 7, 8], [5, 6, 9, 9], [9, 9, 9, 9]], [3, 1, 0]), document_mask=False, eos_id=EOS
    )
    assert batch.input_ids.tolist() == [[5, 6, 7], [5, 6, 9], [9, 9, 9]]
    assert batch.labels.tolist() == [[6, 7, 8], [6, IGNORED, IGNORED], [IGNORED] * 3]
    assert batch.position_ids.tolist() == [[0, 1, 2]] * 3
    assert (batch.num_targets, batch.first_index) == (4, 3)
    assert all(array.dtype == np.int64 for array in batch.inputs.values())


def test_with_the_document_mask_positions_restart_after_each_end_of_text():
    batch = make_batch(blocks_of([[5, EOS, 6, 7, EOS, 8]], [5]), document_mask=True, eos_id=EOS)
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2]]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=4))
def test_positions_count_from_the_last_end_of_text_before_each_token(rows):
    positions = document_positions(np.array(rows), eos_id=EOS)
    for row, got in zip(rows, positions.tolist(), strict=True):
        for i, position in enumerate(got):
            start = max((j + 1 for j in range(i) if row[j] == EOS), default=0)
            assert position == i - start


def test_the_digest_tells_batches_apart_by_tokens_and_by_labels():
    rows = [[5, 6, 7, 8], [1, 2, 3, 4]]
    digests = [
        make_batch(blocks_of(rows, [3, 3]), document_mask=False, eos_id=EOS).digest,
        make_batch(blocks_of(rows, [3, 2]), document_mask=False, eos_id=EOS).digest,
        make_batch(blocks_of(rows[::-1], [3, 3]), document_mask=False, eos_id=EOS).digest,
    ]
    assert len(set(digests)) == 3
    assert digests[0] == make_batch(blocks_of(rows, [3, 3]), document_mask=True, eos_id=99).digest
