"""A model is given back when its last user has gone, whoever lets go and when."""

import copy
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from hsokv_ray.longcontext.attachment import Attachment


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, vocab_size=20)).eval()


def test_the_last_user_gives_the_model_back(model: Any):
    before = model.config._attn_implementation
    first, second = Attachment(model), Attachment(model)
    attached = model.config._attn_implementation
    assert attached != before
    first.release()
    first.release()
    assert model.config._attn_implementation == attached
    second.release()
    assert model.config._attn_implementation == before


@pytest.mark.timeout(60)
def test_an_attachment_may_be_released_while_another_is_made_in_the_same_thread(
    model: Any, monkeypatch: pytest.MonkeyPatch
):
    """As the garbage collector does it."""
    before, other = model.config._attn_implementation, copy.deepcopy(model)
    forgotten, real = Attachment(other), model.set_attn_implementation

    def collecting(name: str) -> None:
        forgotten.release()
        real(name)

    monkeypatch.setattr(model, "set_attn_implementation", collecting)
    held = Attachment(model)
    assert model.config._attn_implementation != before
    assert not forgotten.is_held
    held.release()
    assert model.config._attn_implementation == before
