"""The model inside other people's tools: Trainer, PEFT, lm-evaluation-harness."""

import json

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from hsokv_ray.models import HMSTConfig, HMSTForCausalLM

WORDS = ["<eos>", "<unk>", "the", "cat", "dog", "sat", "ran", "on", "mat", "road", "red", "blue"]


def make_model() -> HMSTForCausalLM:
    torch.manual_seed(0)
    return HMSTForCausalLM(
        HMSTConfig(
            vocab_size=len(WORDS),
            hidden_size=32,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_experts=4,
            eos_token_id=0,
        )
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")


def some_rows(count: int = 16) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(0, len(WORDS), (count, 10), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in ids]


@pytest.mark.filterwarnings("ignore")
def test_trainer_trains_saves_and_evaluates(tmp_path):
    model = make_model()
    before = model.model.layers[0].mlp.experts.gate_up_proj.detach().clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=some_rows(), eval_dataset=some_rows(4))
    assert trainer.train().training_loss > 0
    assert not torch.equal(model.model.layers[0].mlp.experts.gate_up_proj, before)
    loss = trainer.evaluate()["eval_loss"]
    trainer.save_model(str(tmp_path / "saved"))
    loaded = HMSTForCausalLM.from_pretrained(tmp_path / "saved").eval()
    batch = torch.stack([row["input_ids"] for row in some_rows(4)])
    assert loaded(input_ids=batch, labels=batch).loss.item() == pytest.approx(loss, rel=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_lora_trains_attention_and_stacked_experts_and_starts_as_the_base_model():
    model = make_model()
    ids = some_rows(2)[0]["input_ids"][None]
    expected = model(input_ids=ids).logits.detach()
    lora = LoraConfig(
        r=2,
        target_modules=["q_proj", "v_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    peft_model = get_peft_model(model, lora)
    torch.testing.assert_close(peft_model(input_ids=ids).logits, expected)
    peft_model(input_ids=ids, labels=ids).loss.backward()
    trained = {name for name, p in peft_model.named_parameters() if p.grad is not None}
    assert all("lora_" in name for name in trained)
    assert any("mlp.experts" in name for name in trained)
    assert any("q_proj" in name for name in trained)


@pytest.mark.filterwarnings("ignore")
def test_lm_evaluation_harness_scores_an_offline_task_as_the_model_does(tmp_path):
    rows = [
        {"context": "the red cat", "choices": ["sat", "ran"], "label": 0},
        {"context": "the dog", "choices": ["on", "road"], "label": 1},
        {"context": "blue mat", "choices": ["the", "cat"], "label": 1},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "words.yaml").write_text(
        f"""task: words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
    )
    model, tokenizer = make_model().eval(), make_tokenizer()
    results = lm_eval.simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", device="cpu"),
        tasks=["words"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    right = 0
    for row in rows:
        logits = model(tokenizer(row["context"], return_tensors="pt").input_ids).logits[0, -1]
        scores = [logits[WORDS.index(choice)].item() for choice in row["choices"]]
        right += scores.index(max(scores)) == row["label"]
    assert results["results"]["words"]["acc,none"] == pytest.approx(right / len(rows))
