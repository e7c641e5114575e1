#!/usr/bin/env python
"""How much of the attention to a long text each index fetches, on keys and queries of a trained model.

    HSOKV_DATA_DIR=... python benchmarks/longcontext_mass.py          two minutes; needs stories260K

The model (260,000 parameters, a window of 512) reads stories it told; then the next 100 tokens are read one by one,
and at each of them every layer's queries are given to every index over the same keys. The oracle is what no choice of
as many blocks can beat: for each key-value head the blocks with the largest sum of its queries' softmax over all far
tokens. Attention is counted where the index searches, before fetched tokens are put side by side.
"""

import statistics
from unittest import mock

import torch
from harness import write_result
from llama2c import load_model

from hsokv_ray import env
from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext import LongContext, LongContextConfig
from hsokv_ray.longcontext import row as row_module
from hsokv_ray.longcontext.far import FarSegment, choose
from hsokv_ray.longcontext.index import make_index, select_blocks

BOS, EOS = 1, 2
NUM_QUESTIONS = 100
INDEXES = ("flat", "pq", "ivf", "block_mean", "block_minmax")
Asked = tuple[list[FarSegment], torch.Tensor, float]


def main() -> None:
    folder = env.data_dir()
    if folder is None:
        raise ConfigError(f"{env.DATA_DIR} is not set; it names the folder that holds stories260K")
    model = load_model(folder / "stories260K" / "stories260K.bin").eval()
    stories = tell(model, num_stories=256)
    rows = []
    for length in (4096, 16_384, 65_536):
        text = stories.repeat(-(-(length + NUM_QUESTIONS) // len(stories)))
        asked = questions(model, text[:length], text[length : length + NUM_QUESTIONS])
        for blocks in (6, 24):
            rows.append({"context": length, "blocks_of_32": blocks, **shares(asked, blocks)})
            print(rows[-1], flush=True)
    write_result("longcontext_mass", tables={"Share of the oracle's attention fetched": rows}, targets=[], quick=False)


def tell(model, num_stories: int) -> torch.Tensor:
    """Return the ids of stories the model told at temperature 0.8, seed 0."""
    torch.manual_seed(0)
    begin = torch.full((num_stories, 1), BOS)
    options = {"max_new_tokens": 300, "do_sample": True, "temperature": 0.8, "top_k": None, "pad_token_id": EOS}
    told = model.generate(begin, attention_mask=torch.ones_like(begin), **options)
    return torch.cat([row[row != EOS] for row in told])


def questions(model, text: torch.Tensor, after: torch.Tensor) -> list[Asked]:
    """Return what each layer was asked at each token of `after`: its far segments, queries [K, Q, D] and scaling."""
    asked: list[Asked] = []

    def record(segments: list[FarSegment], queries: torch.Tensor, num_blocks: int, scaling: float) -> torch.Tensor:
        asked.append(([segment.view() for segment in segments if segment.num_blocks], queries.clone(), scaling))
        return choose(segments, queries, num_blocks, scaling)

    with LongContext(model, config=LongContextConfig(enabled=True, index="flat")) as lc, torch.no_grad():
        cache = lc.cache(lc.encode(text))
        with mock.patch.object(row_module, "choose", record):
            for token in after:
                model(token.view(1, 1), past_key_values=cache)
    return asked


def shares(asked: list[Asked], num_blocks: int) -> dict[str, float]:
    """Return the mean share of the oracle's attention that each index fetches, and the oracle's own of all."""
    indexes: dict[tuple[int, str], object] = {}
    fetched: dict[str, list[float]] = {name: [] for name in ("oracle", *INDEXES)}
    for segments, queries, scaling in asked:
        first = segments[0]  # the text; a request's own tokens are always searched exactly
        keys = first.span.keys
        attention = (queries @ keys.transpose(1, 2) * scaling).softmax(-1).unflatten(2, (-1, 32)).sum(3).sum(1)
        best = attention.topk(num_blocks, dim=1).values.sum(1)
        fetched["oracle"].append(float(best.mean() / queries.shape[1]))
        for name in INDEXES:
            index = indexes.get((id(first.index), name))
            if index is None:
                index = make_index(name, num_heads=keys.shape[0], head_dim=keys.shape[2], block_size=32)
                index.add(keys, keys)
                indexes[id(first.index), name] = index
            chosen = select_blocks(index.block_logits(queries, keys, num_blocks), num_blocks, scaling)
            fetched[name].append(float((attention.gather(1, chosen).sum(1) / best).mean()))
    return {name: statistics.mean(values) for name, values in fetched.items()} | {"questions": len(asked)}


if __name__ == "__main__":
    main()
