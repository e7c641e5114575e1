"""Encoding spread over Ray Data's workers gives the memory that one process gives."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hsokv_ray.errors import ConfigError
from hsokv_ray.longcontext import LongContext, LongContextConfig
from hsokv_ray.longcontext.on_ray import encode_on_ray

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads, bos_token_id=None, eos_token_id=None)).eval()
    model.save_pretrained(tmp_path / "model")
    return model


def test_pieces_read_by_workers_make_the_memory_that_one_process_makes(llama: Any, tmp_path: Path):
    ids = torch.randint(0, 50, (400,), generator=torch.Generator().manual_seed(1))
    config = LongContextConfig(enabled=True, encoding="parallel", block_size=4, sink_tokens=4)
    load = partial(LlamaForCausalLM.from_pretrained, str(tmp_path / "model"))
    with LongContext(llama, config=config) as lc:
        spread = encode_on_ray(lc, ids, load_model=load, num_workers=2, num_cpus=0.5)
        alone = lc.encode(ids)
        assert spread.token_ids.tolist() == alone.token_ids.tolist()
        for ours, theirs in zip(spread.rows, alone.rows, strict=True):
            torch.testing.assert_close(ours.far[0].span.keys, theirs.far[0].span.keys)
            torch.testing.assert_close(ours.local.values, theirs.local.values)
        answers = [
            lc.generate(memory, prompt=ids[:5], max_new_tokens=8, do_sample=False).token_ids
            for memory in (spread, alone)
        ]
        assert answers[0] == answers[1]
    with (
        LongContext(llama, config=LongContextConfig(enabled=True)) as lc,
        pytest.raises(ConfigError, match="encoding: stream is sequential"),
    ):
        encode_on_ray(lc, ids, load_model=load)
