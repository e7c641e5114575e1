"""Models of llama2.c as transformers models: a checkpoint of format version 0 and its tokenizer file.

    model = load_model(folder / "stories260K.bin")
    tokenizer = load_tokenizer(folder / "tok512.bin")

llama2.c turns neighbouring dimensions of a head together (2i with 2i+1), transformers those half a head apart (i with
i + D/2), so the rows of the query and key projections are put into that order. The formats are those of llama2.c's
`export.py` (legacy_export) and `tokenizer.py` (export).

Shapes: L layers, H heads, K key-value heads, D head dim, M hidden size, F feed-forward size, V vocabulary.
"""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hsokv_ray.errors import CheckpointError

UNK, BOS, EOS = 0, 1, 2
NUM_BYTE_PIECES = 256
RMS_NORM_EPS = 1e-5
ROPE_THETA = 10_000.0
SPACE = "\u2581"
_NAMES = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(NUM_BYTE_PIECES)))


class Header(NamedTuple):
    """The seven int32 a file begins with; a negative vocabulary size means an output embedding of its own."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    signed_vocab_size: int
    window: int

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def vocab_size(self) -> int:
        return abs(self.signed_vocab_size)

    @property
    def tied(self) -> bool:
        return self.signed_vocab_size > 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the float32 arrays in the order of the file."""
        num, width, inner = self.num_layers, self.hidden_size, self.intermediate_size
        kv_width, angles = self.num_key_value_heads * self.head_dim, (self.window, self.head_dim // 2)
        return {
            "embed_tokens": (self.vocab_size, width),
            "input_layernorm": (num, width),
            "self_attn.q_proj": (num, width, width),
            "self_attn.k_proj": (num, kv_width, width),
            "self_attn.v_proj": (num, kv_width, width),
            "self_attn.o_proj": (num, width, width),
            "post_attention_layernorm": (num, width),
            "mlp.gate_proj": (num, inner, width),
            "mlp.down_proj": (num, width, inner),
            "mlp.up_proj": (num, inner, width),
            "norm": (width,),
            "cos": angles,
            "sin": angles,
            **({} if self.tied else {"lm_head": (self.vocab_size, width)}),
        }


def load_model(path: Path) -> LlamaForCausalLM:
    """Return the float32 model of a llama2.c file, in eval mode.

    Raises `CheckpointError`: the file's size is not what its header says.
    """
    header, arrays = _read(path)
    config = LlamaConfig(
        vocab_size=header.vocab_size,
        hidden_size=header.hidden_size,
        intermediate_size=header.intermediate_size,
        num_hidden_layers=header.num_layers,
        num_attention_heads=header.num_heads,
        num_key_value_heads=header.num_key_value_heads,
        max_position_embeddings=header.window,
        rms_norm_eps=RMS_NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=header.tied,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(_state_dict(header, arrays))
    return model.eval()


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a llama2.c tokenizer file (SentencePiece BPE with byte pieces).

    Raises `CheckpointError`: the file breaks off, or its first pieces are not the bytes.
    """
    scores = _read_pieces(path)
    vocab = {piece: number for number, piece in enumerate(scores)}
    tokenizer = Tokenizer(models.BPE(vocab, _merges(scores), unk_token=_NAMES[UNK], fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_NAMES[BOS]} $A", special_tokens=[(_NAMES[BOS], BOS)]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=_NAMES[UNK], bos_token=_NAMES[BOS], eos_token=_NAMES[EOS]
    )


def half_split(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Return a projection [heads * D, M] whose rotated pairs (2i, 2i + 1) of every head stand at (i, i + D/2)."""
    pairs = weight.view(num_heads, -1, 2, weight.shape[-1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def _read(path: Path) -> tuple[Header, dict[str, torch.Tensor]]:
    data = path.read_bytes()
    size = struct.calcsize("<7i")
    if len(data) < size:
        raise CheckpointError(f"{path}: {len(data)} bytes are no llama2.c file; its header alone has {size}")
    header = Header(*struct.unpack("<7i", data[:size]))
    shapes = header.shapes() if min(header[:5]) > 0 and header.hidden_size % header.num_heads == 0 else {}
    expected = size + 4 * sum(int(np.prod(shape)) for shape in shapes.values())
    if not shapes or len(data) != expected:
        raise CheckpointError(
            f"{path}: {len(data)} bytes do not fit its header {tuple(header)}; give a llama2.c file of version 0"
        )
    arrays, start = {}, size
    for name, shape in shapes.items():
        values = np.frombuffer(data, "<f4", int(np.prod(shape)), start)
        arrays[name] = torch.from_numpy(values.reshape(shape).copy())
        start += values.nbytes
    return header, arrays


def _state_dict(header: Header, arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {f"model.{name}.weight": arrays[name] for name in ("embed_tokens", "norm")}
    heads = {"self_attn.q_proj": header.num_heads, "self_attn.k_proj": header.num_key_value_heads}
    for name in (name for name in arrays if name.endswith(("_proj", "_layernorm"))):
        for layer, weight in enumerate(arrays[name]):
            turned = half_split(weight, heads[name]) if name in heads else weight
            state[f"model.layers.{layer}.{name}.weight"] = turned
    return state | {"lm_head.weight": arrays["embed_tokens" if header.tied else "lm_head"]}


def _read_pieces(path: Path) -> dict[str, float]:
    """Return the score of every piece, in the order of ids; spaces are SentencePiece's."""
    data, start = path.read_bytes(), struct.calcsize("<i")  # first the length of the longest piece
    pieces: list[tuple[str, float]] = []
    while start < len(data):
        try:
            score, length = struct.unpack_from("<fi", data, start)
            (raw,) = struct.unpack_from(f"<{length}s", data, start := start + struct.calcsize("<fi"))
        except struct.error as error:
            raise CheckpointError(f"{path}: breaks off after {len(pieces)} pieces; copy it anew") from error
        pieces.append((raw.decode().replace(" ", SPACE), score))
        start += length
    if [piece for piece, _ in pieces[len(_NAMES) - NUM_BYTE_PIECES : len(_NAMES)]] != list(_NAMES[EOS + 1 :]):
        raise CheckpointError(f"{path}: pieces 3 to 258 are not the 256 bytes; give a llama2.c tokenizer file")
    return dict(zip(_NAMES, [score for _, score in pieces], strict=False)) | dict(pieces[len(_NAMES) :])


def _merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, best score first, as llama2.c's encoder takes them."""
    pieces = list(scores)[len(_NAMES) :]
    ranked = sorted((piece for piece in pieces if len(piece) > 1), key=lambda piece: -scores[piece])
    cuts = ((piece[:cut], piece[cut:]) for piece in ranked for cut in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in scores and right in scores]
