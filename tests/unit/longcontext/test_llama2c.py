"""llama2.c files as transformers models: against llama2.c's own documented output, encoder and rotation."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from llama2c import half_split, load_model, load_tokenizer
from transformers.models.llama.modeling_llama import rotate_half

from hsokv_ray.errors import CheckpointError

STORY = (  # llama2.c, doc/stories260K.md, temperature 0
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)
TEXTS = ["", "Lily", 'Once upon a time, there was a park.\n"Oh!" said Tim.', "a  b", "naïve 東京 \U0001f600", "ß\tx"]


@pytest.mark.real_data
def test_greedy_decoding_tells_the_documented_story(real_data: Path) -> None:
    model, tokenizer = load_model(real_data / "stories260K" / "stories260K.bin"), _tokenizer(real_data)
    prompt = torch.tensor([[tokenizer.bos_token_id]])
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=90, do_sample=False)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).startswith(STORY)


@pytest.mark.real_data
@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_encodes_as_llama2c_does_and_gives_the_text_back(real_data: Path, text: str) -> None:
    tokenizer = _tokenizer(real_data)
    assert len(tokenizer) == 512
    ids = tokenizer(text).input_ids
    assert ids == [1, *_encode(_pieces(real_data / "stories260K" / "tok512.bin"), text)]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.real_data
def test_the_story_needs_the_rows_to_be_permuted(real_data: Path) -> None:
    model, tokenizer = load_model(real_data / "stories260K" / "stories260K.bin"), _tokenizer(real_data)
    ids = tokenizer(STORY, return_tensors="pt").input_ids
    with torch.no_grad():
        right = model(ids, labels=ids).loss
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
                projection.weight.copy_(half_split(projection.weight, projection.out_features // 8))
        assert model(ids, labels=ids).loss > right + 1


def test_rotating_permuted_rows_is_rotating_neighbouring_pairs() -> None:
    heads, dim, width = 2, 8, 6
    weight = torch.randn(heads * dim, width, generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(width, generator=torch.Generator().manual_seed(1))
    angles = torch.arange(1.0, dim // 2 + 1)
    neighbours = (weight @ hidden).view(heads, dim // 2, 2)
    turned = torch.view_as_real(torch.view_as_complex(neighbours) * torch.polar(torch.ones(dim // 2), angles))
    halves = (half_split(weight, heads) @ hidden).view(heads, dim)
    rotated = halves * angles.repeat(2).cos() + rotate_half(halves) * angles.repeat(2).sin()
    torch.testing.assert_close(rotated.view(heads, 2, dim // 2).transpose(1, 2), turned)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:20]])
def test_a_file_of_another_size_than_its_header_says_is_an_error(tmp_path: Path, change) -> None:
    header = (8, 12, 1, 2, 1, -5, 6)
    tables = 5 * 8 + 8 + 64 + 32 + 32 + 64 + 8 + 3 * 96 + 8 + 2 * 12 + 5 * 8
    data = struct.pack("<7i", *header) + np.zeros(tables, "<f4").tobytes()
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    assert load_model(path).config.num_key_value_heads == 1
    path.write_bytes(change(data))
    with pytest.raises(CheckpointError, match=r"header"):
        load_model(path)


def test_a_tokenizer_file_that_breaks_off_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tok.bin"
    path.write_bytes(struct.pack("<ifi", 7, 0.0, 5) + b"<un")
    with pytest.raises(CheckpointError, match="breaks off after 0 pieces"):
        load_tokenizer(path)


def test_a_tokenizer_without_the_bytes_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "tok.bin"
    path.write_bytes(struct.pack("<ifi", 7, 0.0, 5) + b"<unk>")
    with pytest.raises(CheckpointError, match="256 bytes"):
        load_tokenizer(path)


def _tokenizer(real_data: Path):
    return load_tokenizer(real_data / "stories260K" / "tok512.bin")


def _pieces(path: Path) -> list[tuple[bytes, float]]:
    data, start, pieces = path.read_bytes(), 4, []
    while start < len(data):
        score, length = struct.unpack_from("<fi", data, start)
        pieces.append((data[start + 8 : start + 8 + length], score))
        start += 8 + length
    return pieces


def _encode(pieces: list[tuple[bytes, float]], text: str) -> list[int]:
    """llama2.c's `encode`: characters or bytes, then the best-scored neighbours until none is left."""
    number = {piece: i for i, (piece, _) in enumerate(pieces)}
    ids = [number[b" "]] if text else []
    for character in text:
        raw = character.encode()
        ids += [number[raw]] if raw in number else [3 + byte for byte in raw]
    while True:
        pairs = [number.get(pieces[left][0] + pieces[right][0]) for left, right in zip(ids, ids[1:], strict=False)]
        found = [(pieces[merged][1], -at, merged) for at, merged in enumerate(pairs) if merged is not None]
        if not found:
            return ids
        _, at, merged = max(found)
        ids[-at : -at + 2] = [merged]
