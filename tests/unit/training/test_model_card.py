import math
from pathlib import Path

import yaml
from huggingface_hub import ModelCard

from hsokv_ray.config import load_yaml
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.model_card import Facts, model_card, versions, write_model_card

CONFIG = TrainHMSTConfig.model_validate({"run": {"name": "tales"}, "data": {"source": "hf://org/tales"}})


def facts(*, val_loss: float | None = 4.5) -> Facts:
    return Facts(
        config=CONFIG,
        checkpoint=Path("/runs/tales/checkpoints/step-00000200"),
        total_parameters=12_345_678,
        active_parameters=4_000_000,
        data={"documents": 1234, "digest": "abc123", "revision": None},
        step=300,
        best_step=200,
        tokens=1_228_800,
        val_loss=val_loss,
        baselines={"unigram counts": 6.25},
        command="jobs/train_hmst.py --name tales --source hf://org/tales",
    )


def test_the_hub_library_reads_the_card(tmp_path):
    card = ModelCard.load(write_model_card(tmp_path / "README.md", facts()))
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-generation")
    assert "hmst" in data["tags"]
    metric = data["model-index"][0]["results"][0]["metrics"][0]
    assert (metric["type"], metric["value"]) == ("perplexity", round(math.exp(4.5), 3))


def test_the_card_tells_size_data_results_baselines_and_command():
    text = model_card(facts())
    for expected in (
        "12,345,678 parameters, 4,000,000 of them active per token",
        "| this model (step 200) | 4.500 | 90.0 |",
        "| unigram counts | 6.250 | 518.0 |",
        "| documents | 1,234 |",
        "| digest | abc123 |",
        "Source: `hf://org/tales`",
        "300 optimiser steps, 1,228,800 tokens",
        "jobs/train_hmst.py --name tales",
        "hsokv generate /runs/tales/checkpoints/step-00000200",
    ):
        assert expected in text
    assert "None" not in text.split("```yaml")[0]
    assert all(f"| {name} | {version} |" in text for name, version in versions().items())


def test_the_configuration_in_the_card_can_be_used_again(tmp_path):
    block = model_card(facts()).split("```yaml\n")[1].split("```")[0]
    (tmp_path / "config.yaml").write_text(block)
    assert load_yaml(TrainHMSTConfig, tmp_path / "config.yaml") == CONFIG


def test_a_run_without_held_out_text_claims_no_result():
    text = model_card(facts(val_loss=None))
    assert "No text was held out" in text
    assert "model-index" not in yaml.safe_load(text.split("---")[1])
