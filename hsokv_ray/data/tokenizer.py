"""Text to token ids: a byte-level BPE of our own or any Hugging Face tokenizer, run by the fastest engine that agrees.

A tokenizer lives in a folder (`tokenizer.json`, `tokenizer_config.json`) that `transformers.AutoTokenizer` loads too.
Special tokens written literally in a text are text: `<|endoftext|>` in a document never ends it.
"""

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from hsokv_ray.data.fast_bpe import FastBPE
from hsokv_ray.errors import DataError

EOS_TOKEN = "<|endoftext|>"
PAD_TOKEN = "<|pad|>"
MIN_VOCAB_SIZE = 256 + 2

_TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"


class TextTokenizer:
    """A tokenizer with an end-of-text token; encodes to NumPy, never parses special tokens in a text.

    Attributes:
        vocab_size: rows an embedding needs, the largest id + 1.
        eos_id, pad_id: ids of the end-of-text token and of padding (the former where the tokenizer has no padding).
        dtype: uint16, or uint32 where ids do not fit.
        backend: `tiktoken` where its ids were proven identical, else `tokenizers`.
        reason: why this backend.
        fingerprint: SHA-256 of everything that decides the ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, eos_token: str, config: dict[str, Any] | None = None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._config = dict(config or {})
        self.eos_token = eos_token
        self.eos_id = _token_id(tokenizer, eos_token)
        self.pad_id = _pad_id(tokenizer, self._config, default=self.eos_id)
        self.vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.dtype = np.dtype(np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)
        self.fingerprint = hashlib.sha256(f"{tokenizer.to_str()}\n{eos_token}".encode()).hexdigest()
        self._fast, self.reason = _fast_twin(tokenizer, self.dtype)
        self.backend: Literal["tiktoken", "tokenizers"] = "tiktoken" if self._fast else "tokenizers"

    def encode(self, text: str) -> np.ndarray:
        """Return the ids of `text`, 1-D of `dtype`, without an end-of-text token."""
        return self.encode_documents([text])[0]

    def encode_documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the ids of each text, 1-D of `dtype`, without end-of-text tokens."""
        if self._fast is None:
            return self._encode_slowly(texts)
        return [self._encode_fast(self._fast, text) for text in texts]

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 come out as U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def save(self, folder: str | Path) -> Path:
        """Write the tokenizer into `folder`, readable by `load_tokenizer` and `AutoTokenizer`; return the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(folder / _TOKENIZER_FILE))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | self._config
        config["eos_token"] = self.eos_token
        (folder / _CONFIG_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder

    def _encode_fast(self, fast: FastBPE, text: str) -> np.ndarray:
        try:
            return fast.encode(text)
        except ValueError:
            # The regex engine of tiktoken gives up on a million spaces in a row; the slow path has no such limit.
            return self._encode_slowly([text])[0]

    def _encode_slowly(self, texts: Sequence[str]) -> list[np.ndarray]:
        texts = [text if text.isascii() else _without_surrogates(text) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=self.dtype) for encoding in encodings]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> TextTokenizer:
    """Learn a byte-level BPE (GPT-2 word pattern) with `<|endoftext|>` = 0 and `<|pad|>` = 1 from `texts`.

    The vocabulary is smaller than `vocab_size` where the texts give no more merges. Raises `DataError` when there is no
    text or `vocab_size` has no room for the 256 bytes and the two special tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(f"--vocab-size: got {vocab_size}; at least {MIN_VOCAB_SIZE} (256 bytes and two special tokens)")
    seen = _Seen(texts)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(seen, trainer)
    if not seen.num_chars:
        raise DataError("no text to train a tokenizer on; give a --source with text, or --tokenizer-path")
    return TextTokenizer(tokenizer, eos_token=EOS_TOKEN, config={"pad_token": PAD_TOKEN})


def load_tokenizer(path_or_name: str | Path) -> TextTokenizer:
    """Load a tokenizer folder, a `tokenizer.json`, or a Hugging Face name through `AutoTokenizer`.

    Raises `DataError` when it cannot be found (also offline), has no fast form, or has no end-of-text token.
    """
    path = Path(path_or_name)
    if path.name == _TOKENIZER_FILE:
        path = path.parent
    if (path / _TOKENIZER_FILE).is_file():
        return _load_folder(path, name=str(path_or_name))
    with tempfile.TemporaryDirectory() as folder:
        _download(str(path_or_name), folder)
        return _load_folder(Path(folder), name=str(path_or_name))


@functools.lru_cache(maxsize=4)
def cached_tokenizer(path: str) -> TextTokenizer:
    """Return the tokenizer at `path`, loaded once per process; for tasks that share a worker process."""
    return load_tokenizer(path)


def check_vocabulary(tokenizer: TextTokenizer, model_vocab_size: int) -> None:
    """Raise `DataError` when a model with `model_vocab_size` embedding rows cannot take the tokenizer's ids."""
    if tokenizer.vocab_size > model_vocab_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model's vocabulary {model_vocab_size}; "
            "use the tokenizer the model was trained with (the tokenizer folder beside its checkpoint)"
        )


class _Seen:
    """Passes texts through and counts their characters."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.num_chars = 0

    def __iter__(self):
        for text in self._texts:
            self.num_chars += len(text)
            yield _without_surrogates(text)


def _load_folder(folder: Path, *, name: str) -> TextTokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(folder / _TOKENIZER_FILE))
    except Exception as error:  # tokenizers raises bare Exception
        raise DataError(f"tokenizer {name!r} cannot be read ({error}); give a folder with a tokenizer.json") from None
    config_path = folder / _CONFIG_FILE
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    eos_token = _content(config.get("eos_token")) or (
        EOS_TOKEN if tokenizer.token_to_id(EOS_TOKEN) is not None else None
    )
    if eos_token is None:
        raise DataError(
            f"tokenizer {name!r} has no end-of-text token, which separates documents; "
            f'add "eos_token" to its {_CONFIG_FILE}, or leave --tokenizer-path out to train one'
        )
    return TextTokenizer(tokenizer, eos_token=eos_token, config=config)


def _download(name: str, folder: str) -> None:
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # the hub's failures have no common base
        cause = " ".join(str(error).split())[:200]
        raise DataError(
            f"--tokenizer-path: cannot load {name!r} ({cause}); "
            "give a local folder with a tokenizer.json, or leave it out to train a tokenizer on the source"
        ) from None
    if not loaded.is_fast:
        raise DataError(
            f"--tokenizer-path: {name!r} has no fast form (tokenizer.json); choose a tokenizer that has one"
        )
    loaded.save_pretrained(folder)


def _fast_twin(tokenizer: Tokenizer, dtype: np.dtype) -> tuple[FastBPE | None, str]:
    try:
        return FastBPE(tokenizer, dtype=dtype), "ids proven identical on the self-check"
    except DataError as refusal:
        return None, str(refusal)


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise DataError(f"the tokenizer's end-of-text token {token!r} is not in its vocabulary; correct {_CONFIG_FILE}")
    return token_id


def _pad_id(tokenizer: Tokenizer, config: dict[str, Any], *, default: int) -> int:
    token = _content(config.get("pad_token"))
    found = tokenizer.token_to_id(token) if token else None
    return default if found is None else found


def _content(token: str | dict[str, Any] | None) -> str | None:
    """Special tokens are written as text or as a mapping with `content`."""
    return token["content"] if isinstance(token, dict) else token


def _without_surrogates(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
