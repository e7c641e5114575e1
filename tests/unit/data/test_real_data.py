"""Real corpora through the whole data path; the folder is named by HSOKV_DATA_DIR."""

from pathlib import Path

import numpy as np
import pytest

from hsokv_ray.data import (
    BlockStream,
    DataConfig,
    ReadCounts,
    read_documents,
    read_in_process,
    resolve_plan,
    sample_texts,
    train_tokenizer,
)

pytestmark = pytest.mark.real_data


def test_webdataset_shards_give_every_document_once(real_data: Path) -> None:
    tars = sorted((real_data / "webdataset").glob("*.tar"))
    plan = resolve_plan(DataConfig(source=str(real_data / "webdataset" / "*.tar"), val_split=0.0), seed=0)
    counts = ReadCounts()
    ids = [
        document.id
        for stream in range(plan.num_streams)
        for part in plan.stream_parts(stream, 0)
        for document in read_documents(plan, part, split="train", epoch=0, counts=counts)
    ]
    assert len(ids) == len(set(ids)) == counts.documents == 568 * len(tars)


def test_books_become_blocks_whose_tokens_are_all_of_the_text(real_data: Path) -> None:
    books = real_data / "books" / "[ad]*.txt.gz"  # three books are enough
    plan = resolve_plan(DataConfig(source=str(books), val_split=0.0, logical_ranks=2), seed=0)
    tokenizer = train_tokenizer(
        sample_texts(plan, split="train", max_bytes=1_000_000, counts=ReadCounts()), vocab_size=1000
    )
    assert tokenizer.backend == "tiktoken", tokenizer.reason
    counts = ReadCounts()
    texts = [
        document.text
        for part in plan.parts
        for document in read_documents(plan, part, split="train", epoch=0, counts=counts)
    ]
    expected = np.bincount(np.concatenate([tokenizer.encode(text) for text in texts]), minlength=1000)
    expected[tokenizer.eos_id] += len(texts)

    stream = BlockStream(plan, read_in_process(plan, tokenizer=tokenizer, split="train"), seq_len=256, epochs=1)
    seen = np.zeros(1000, dtype=np.int64)
    firsts = []
    while not stream.is_finished:
        blocks = stream.take(2)
        firsts += [] if firsts else blocks.tokens[:, 0].tolist()
        targets = blocks.tokens[:, 1:][np.arange(256) < blocks.num_targets[:, None]]
        seen += np.bincount(targets, minlength=1000)
    seen += np.bincount(firsts, minlength=1000)  # a stream's first token is predicted by nothing
    assert (seen == expected).all()
