"""Text to vectors, by a named encoder.

    encoder = open_encoder("sentence-transformers:all-MiniLM-L6-v2")      # or a local folder, or hf:org/name
    vectors = encoder.encode(["a text"])                                  # float32 [1, encoder.dim]
    encoder.fingerprint                                                   # the same for the same weights anywhere

sentence-transformers is the optional extra `encoders`. `hf:` needs nothing beside transformers: it takes the mean of
the last hidden states over the tokens that are not padding, at unit length. `vectors:` looks texts up in a folder of
vectors, see `hsokv_ray.memory.stored_vectors`.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from hsokv_ray.errors import ConfigError
from hsokv_ray.memory.stored_vectors import StoredVectors

BATCH_SIZE = 64
_EXAMPLES = "sentence-transformers:all-MiniLM-L6-v2, hf:org/name, the folder of a model, or vectors:FOLDER"


class Encoder(Protocol):
    """Turns texts into vectors. Calling it is calling `encode`."""

    dim: int
    """d of the vectors."""
    fingerprint: str
    """Digest of the weights, the tokenizer and how they are pooled: equal fingerprints give equal vectors."""
    max_tokens: int
    """Tokens of a text that are looked at, special ones included; `encode` leaves out the rest."""

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text, special ones included, nothing left out."""
        ...

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return float32 [n, dim]."""
        ...

    def __call__(self, texts: list[str]) -> np.ndarray: ...


def open_encoder(spec: str, *, device: str = "cpu") -> Encoder:
    """Load the encoder that `spec` names.

    Args:
        spec: `sentence-transformers:NAME_OR_FOLDER`, `hf:NAME_OR_FOLDER`, `vectors:FOLDER` (see `StoredVectors`), or a
            folder: with a modules.json it is a sentence-transformers model, else a transformers one.
        device: a torch device; stored vectors need none.

    Raises:
        ConfigError: it is not one of these, cannot be loaded, or its package is missing.
        DataError: stored vectors are missing or damaged.
    """
    scheme, colon, name = spec.partition(":")
    if scheme == "vectors" and name:
        return StoredVectors(name)
    if colon and scheme in ("sentence-transformers", "hf") and name:
        kind = scheme
    elif Path(spec).is_dir():
        kind, name = ("sentence-transformers" if (Path(spec) / "modules.json").is_file() else "hf"), spec
    else:
        raise ConfigError(f"encoder: got {spec!r}; give {_EXAMPLES}")
    try:
        return SentenceEncoder(name, device) if kind == "sentence-transformers" else HuggingFaceEncoder(name, device)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"encoder: {spec!r} cannot be loaded ({reason}); give {_EXAMPLES}") from None


class SentenceEncoder:
    """A sentence-transformers model.

    Args:
        name: on the hub, or a folder.
        device: a torch device.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError:
            raise ConfigError(
                'encoder: the package sentence-transformers is not installed; pip install "hsokv_ray[encoders]"'
            ) from None
        self._model = SentenceTransformer(name, device=device)
        dim = self._model.get_embedding_dimension()
        if dim is None:
            raise ConfigError(f"encoder: {name!r} does not say how many dimensions its vectors have; use another model")
        self.dim = dim
        self.max_tokens = int(self._model.max_seq_length or 2**31)
        steps = [f"{type(module).__name__} {getattr(module, 'pooling_mode', '')}" for module in self._model]
        words = [*steps, str(self._model.max_seq_length), _vocabulary(self._model.tokenizer)]
        self.fingerprint = _fingerprint(self._model.state_dict(), words)

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text, special ones included, nothing left out."""
        return _count_tokens(self._model.tokenizer, texts)

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return float32 [n, dim]."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        vectors = self._model.encode(list(texts), batch_size=BATCH_SIZE, show_progress_bar=False)
        return np.asarray(vectors, np.float32)

    __call__ = encode


class HuggingFaceEncoder:
    """The masked mean of a transformers model's last hidden states, at unit length.

    Args:
        name: on the hub, or a folder.
        device: a torch device.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(name)
        self._model = AutoModel.from_pretrained(name).float().to(device).eval()
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self.max_tokens = min(self._tokenizer.model_max_length, _positions(self._model.config))
        self.dim = int(self._model.config.hidden_size)
        self.fingerprint = _fingerprint(
            self._model.state_dict(), ["mean", str(self.max_tokens), _vocabulary(self._tokenizer)]
        )

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text, special ones included, nothing left out."""
        return _count_tokens(self._tokenizer, texts)

    @torch.inference_mode()
    def encode(self, texts: list[str]) -> np.ndarray:
        """Return float32 [n, dim]."""
        if not texts:
            return np.zeros((0, self.dim), np.float32)
        parts = [self._encode(list(texts[i : i + BATCH_SIZE])) for i in range(0, len(texts), BATCH_SIZE)]
        return torch.cat(parts).cpu().numpy()

    __call__ = encode

    def _encode(self, texts: list[str]) -> torch.Tensor:
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        batch = batch.to(self._model.device)
        hidden_BTD = self._model(**batch).last_hidden_state
        mask_BT1 = batch["attention_mask"][..., None].to(hidden_BTD.dtype)
        mean_BD = (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(mean_BD, dim=-1)


def _count_tokens(tokenizer: Any, texts: list[str]) -> list[int]:
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(texts, truncation=False, padding=False, verbose=False)["input_ids"]]


def _positions(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", 0) or 512)


def _vocabulary(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return repr(sorted(tokenizer.get_vocab().items()))
    parts = json.loads(backend.to_str())
    return json.dumps({key: parts[key] for key in sorted(parts) if key not in ("truncation", "padding")})


def _fingerprint(weights: dict[str, torch.Tensor], words: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {flat.dtype} {list(flat.shape)}".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    for word in words:
        digest.update(word.encode() + b"\0")
    return digest.hexdigest()
