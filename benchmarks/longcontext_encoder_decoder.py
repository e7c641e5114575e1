#!/usr/bin/env python
"""Cross attention of one decoder layer per generated token: retrieval beside attending to everything.

    python benchmarks/longcontext_encoder_decoder.py            about 5 minutes on one core, 1 GB of memory
    python benchmarks/longcontext_encoder_decoder.py --quick    does it run, not how fast

Hidden states are random, which is the worst case: heads agree on no block, so each copies a budget of its own.
"All keys and values" is the library's way, which keeps both for every layer; the others keep hidden states once.

The second table says how much of the attention over 16 thousand tokens the fetched blocks hold when every head chooses
its own, and when the heads of a layer choose together: for untrained models, from flat to sharp attention by the
spread of their weights. "copied" is the part of all heads' budgets that is left when they share copies.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import interleave, write_result
from transformers import BartConfig, BartForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hsokv_ray.longcontext.config import LongContextConfig
from hsokv_ray.longcontext.encoder_decoder import CrossRetrievalLayer, EncodedText, resolve
from hsokv_ray.longcontext.encoder_decoder.attending import attend_hidden
from hsokv_ray.longcontext.encoder_decoder.families import cross_attentions, projections
from hsokv_ray.longcontext.encoder_decoder.text import GrowingRows
from hsokv_ray.longcontext.index import make_index

WINDOW, BLOCK = 1024, 32
INDEXES = ("flat", "pq", "ivf", "block_mean", "block_minmax")
QUICK = {"lengths": (4096,), "widths": (256,), "repeats": 2, "spreads": (0.1,)}
FULL = {"lengths": (4096, 16_384, 65_536), "widths": (256, 512), "repeats": 15, "spreads": (0.05, 0.1, 0.15)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    plan: dict[str, Any] = QUICK if args.quick else FULL
    rows = [row for width in plan["widths"] for n in plan["lengths"] for row in measure(width, n, plan["repeats"])]
    tables = {"one layer, one token": rows, "attention caught": [row for std in plan["spreads"] for row in caught(std)]}
    write_result("longcontext_encoder_decoder", tables=tables, targets=[], quick=args.quick)


@torch.no_grad()
def measure(width: int, num_tokens: int, repeats: int) -> list[dict[str, Any]]:
    """Return a row per system for hidden states of `width` numbers."""
    torch.manual_seed(0)
    model = small_bart(width)
    module: Any = cross_attentions(model)[0]
    hidden_NM = torch.nn.functional.layer_norm(torch.randn(num_tokens, width), (width,))
    query = torch.randn(1, 8, 1, width // 8)
    project = projections(module)
    queries_QM = torch.einsum("whtd,hdm->whtm", query * module.scaling, project.key_HDM).flatten(0, 2)
    runs: dict[str, Callable[[], Any]] = {
        "all keys and values": library_way(module, hidden_NM, query),
    }
    texts = {index: stored(hidden_NM, index) for index in INDEXES}
    runs["all hidden states"] = lambda: attend_hidden(queries_QM, texts["flat"], texts["flat"].num_blocks)
    for index, text in texts.items():
        for budget in (256, 1024):
            runs[f"{index}, budget {budget}"] = retrieval(model, module, text, query, budget)
    timings = interleave(runs, repeats=repeats, clock="process", warmup=2)
    everything = timings["all keys and values"].median_s
    return [
        {
            "width": width,
            "tokens": num_tokens,
            "system": name,
            "ms": 1000 * timing.median_s,
            "lower quartile ms": 1000 * timing.lower_quartile_s,
            "speedup": everything / timing.median_s,
            "index share of hidden states": texts[name.split(",")[0]].index_nbytes / hidden_NM.nbytes
            if "," in name
            else 0.0,
        }
        for name, timing in timings.items()
    ]


@torch.no_grad()
def caught(spread: float, *, width: int = 512, num_tokens: int = 16_384) -> list[dict[str, Any]]:
    """Return the share of attention in fetched blocks, mean over heads, tokens and layers of an untrained model."""
    torch.manual_seed(0)
    model = small_bart(width, spread=spread, num_layers=4)
    ids = torch.randint(3, 1000, (1, num_tokens))
    hidden_NM = torch.cat([model.get_encoder()(part).last_hidden_state[0] for part in ids.split(WINDOW, dim=1)])
    queries_PHM: list[torch.Tensor] = []
    for module in cross_attentions(model):
        module.q_proj.register_forward_hook(  # pyright: ignore[reportAttributeAccessIssue]
            lambda _, __, output, module=module: queries_PHM.append(
                torch.einsum("thd,hdm->thm", output[0].unflatten(1, (8, -1)), projections(module).key_HDM)
                * module.scaling
            )
        )
    model(decoder_input_ids=ids[:, :8], encoder_outputs=(hidden_NM[None, :WINDOW],))
    logits_PHBS = (torch.cat(queries_PHM) @ hidden_NM.T).unflatten(2, (-1, BLOCK))
    mass_PHB = logits_PHBS.flatten(2).softmax(2).unflatten(2, (-1, BLOCK)).sum(3)
    best_PHB = logits_PHBS.amax(3)
    together_P1B = (best_PHB - best_PHB.amax(2, keepdim=True)).amax(1, keepdim=True)
    rows = []
    for budget in (256, 1024):
        own = best_PHB.topk(budget // BLOCK, dim=2).indices
        shared = together_P1B.topk(budget // BLOCK, dim=2).indices.expand_as(own)
        copied = [len(blocks.unique()) / blocks.numel() for blocks in own]
        rows.append(
            {
                "spread of weights": spread,
                "budget": budget,
                "each head chooses": mass_PHB.gather(2, own).sum(2).mean().item(),
                "heads choose together": mass_PHB.gather(2, shared).sum(2).mean().item(),
                "copied": sum(copied) / len(copied),
            }
        )
    return rows


def small_bart(width: int, *, spread: float = 0.1, num_layers: int = 1) -> Any:
    """Return an untrained BART of 8 heads."""
    config = BartConfig(
        vocab_size=1000,
        d_model=width,
        encoder_layers=2,
        decoder_layers=num_layers,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=width,
        decoder_ffn_dim=width,
        max_position_embeddings=WINDOW,
        init_std=spread,
    )
    return BartForConditionalGeneration(config).eval()


def stored(hidden_NM: torch.Tensor, name: str) -> EncodedText:
    """Return hidden states as `encode_text` would have left them, the last half window unsettled."""
    num_settled = len(hidden_NM) - WINDOW // 2
    width = hidden_NM.shape[1]
    index = make_index(name, num_heads=1, head_dim=width, block_size=BLOCK)
    rows = GrowingRows.empty(width, torch.float32, "cpu", capacity=num_settled).extended(hidden_NM[:num_settled])
    for end in range(WINDOW // 2, num_settled + 1, WINDOW // 2):
        everything = rows.rows_NM[None, :end]
        index.add(everything[:, end - WINDOW // 2 :], everything)
    return EncodedText(
        token_ids=np.zeros(len(hidden_NM), dtype=np.int64),
        settled=rows,
        tail_NM=hidden_NM[num_settled:],
        index=index,
        window=WINDOW,
        block_size=BLOCK,
        model_digest="",
    )


def retrieval(model: Any, module: Any, text: EncodedText, query: torch.Tensor, budget: int) -> Callable[[], Any]:
    """Return one step of cross attention with retrieval."""
    config = LongContextConfig(enabled=True, context_window_size=WINDOW, block_size=BLOCK, budget_tokens=budget)
    layer = CrossRetrievalLayer(module, [text], resolve(config, model), retrieves=True)
    return lambda: layer.attend(module, query, layer.keys, layer.values, None, scaling=module.scaling)


def library_way(module: Any, hidden_NM: torch.Tensor, query: torch.Tensor) -> Callable[[], Any]:
    """Return one step of cross attention over kept keys and values."""
    shape = (1, len(hidden_NM), 8, -1)
    key = module.k_proj(hidden_NM).view(shape).transpose(1, 2).contiguous()
    value = module.v_proj(hidden_NM).view(shape).transpose(1, 2).contiguous()
    return lambda: sdpa_attention_forward(module, query, key, value, None, scaling=module.scaling)


if __name__ == "__main__":
    main()
