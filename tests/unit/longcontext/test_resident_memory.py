"""Resident memory over 100,000 tokens: what the process had, and the kept tokens and their index plus a tenth."""

import subprocess
import sys

SCRIPT = """
import resource, torch
from transformers import LlamaConfig, LlamaForCausalLM
from hsokv_ray.longcontext import LongContext, LongContextConfig

torch.manual_seed(0)
torch.set_num_threads(1)
model = LlamaForCausalLM(LlamaConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
    vocab_size=256, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
)).eval()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with LongContext(model, config=LongContextConfig(enabled=True)) as lc:
    ids = torch.randint(0, 256, (100_000,))
    lc.generate(lc.encode(ids[:3_000]), prompt=ids[:10], max_new_tokens=5)  # libraries, threads and workspaces
    before = peak()
    memory = lc.encode(ids)
    lc.generate(memory, prompt=ids[:100], max_new_tokens=20, do_sample=False)
    print(before, peak(), memory.nbytes, memory.index_nbytes)
"""


def test_generating_over_100_000_tokens_holds_the_store_the_index_and_a_tenth_more():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=280, check=True)
    before, after, store, index = map(int, done.stdout.split())
    assert store >= 100_000 * 4 * 2 * 128 * 4
    assert after - before <= 1.1 * (store + index)
