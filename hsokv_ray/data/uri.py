"""Which source is meant: a URI or the flags that mirror it become one `SourceSpec`. Parsing does no input or output.

file:///data/books, data/*.txt          custom      files, folders, globs
hf://org/name@revision:config:split     hf          a data set on the hub, or a local data set folder
wds://x-{000..009}.tar, x-000.tar       webdataset  tar shards
python://stdlib                         stdlib      the running Python's own modules and documentation
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

from hsokv_ray.data.config import DataConfig
from hsokv_ray.errors import ConfigError

STDLIB_URI = "python://stdlib"
MAX_EXPANSION = 1_000_000

SpecBackend = Literal["custom", "hf", "webdataset", "stdlib"]
_SCHEMES = {"file": "custom", "hf": "hf", "wds": "webdataset", "python": "stdlib"}
_TAR_NAME = re.compile(r"\.(tar|tar\.gz|tgz)$")
_HF_FORM = re.compile(r"(?P<name>[^:]+)(:(?P<config>[^:]*))?(:(?P<split>[^:]*))?")
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([A-Za-z])\.\.([A-Za-z])(?:\.\.(-?\d+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """A source, fully named: equal specs read the same text."""

    backend: SpecBackend
    location: str
    """Path or glob (custom), data set name or folder (hf), shard pattern (webdataset)."""
    hf_config: str | None = None
    hf_split: str | None = None
    hf_revision: str | None = None

    @property
    def uri(self) -> str:
        """The canonical URI; `parse_source` reads it back."""
        match self.backend:
            case "stdlib":
                return STDLIB_URI
            case "webdataset":
                return f"wds://{self.location}"
            case "hf":
                revision = f"@{self.hf_revision}" if self.hf_revision else ""
                return f"hf://{self.location}{revision}:{self.hf_config or ''}:{self.hf_split or 'train'}"
        return self.location


def source_spec(config: DataConfig) -> SourceSpec:
    """Return the source that `config` names, by URI or by the flags of a backend.

    Raises:
        ConfigError: two sources are given, or a flag contradicts the source.
    """
    backend, text = _named_source(config)
    spec = parse_source(text, backend=backend)
    if spec.backend == "hf":
        spec = _with_hf_flags(spec, config)
    elif given := [flag for flag, value in _hf_flags(config).items() if value]:
        raise ConfigError(
            f"{given[0]} belongs to Hugging Face data sets, but the source is {spec.uri!r}; drop the flag"
        )
    if config.wds_resampled and spec.backend != "webdataset":
        raise ConfigError(f"--wds-resampled draws tar shards, but the source is {spec.uri!r}; drop the flag")
    if config.wds_epoch_documents is not None and not config.wds_resampled:
        raise ConfigError("--wds-epoch-documents is the epoch of resampled shards; give --wds-resampled or drop it")
    return spec


def parse_source(text: str, *, backend: str | None = None) -> SourceSpec:
    """Return the source that a URI or bare path names.

    Args:
        text: `file://`, `hf://`, `wds://`, `python://stdlib`, or a bare path, glob or tar pattern.
        backend: custom, hf or webdataset: how to take a bare value; None tells by its look (`.tar` or not).

    Raises:
        ConfigError: the scheme is unknown, the form is wrong, or it contradicts `backend`.
    """
    scheme, separator, rest = text.partition("://")
    if not separator or scheme in ("http", "https", "s3", "gs", "hdfs"):
        kind, rest = backend or ("webdataset" if _TAR_NAME.search(text) else "custom"), text
    elif scheme in _SCHEMES:
        kind = _SCHEMES[scheme]
    else:
        raise ConfigError(f"source: got {text!r}; schemes are {', '.join(s + '://' for s in _SCHEMES)} or a bare path")
    if backend and kind != backend and not (backend == "custom" and kind == "stdlib"):
        raise ConfigError(f"--dataset-backend {backend} cannot read {text!r} ({kind}); drop it or change the source")
    if not rest:
        raise ConfigError(f"source: {text!r} names nothing; give a path or a name after it")
    if kind == "stdlib":
        return _parse_stdlib(text)
    if kind == "hf":
        return _parse_hf(rest)
    if kind == "webdataset":
        return _parse_tar(rest)
    return _parse_files(unquote(rest) if scheme == "file" else rest)


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield what a shell's brace expansion makes of `pattern`, in its order.

    Lists `{a,b}`, ranges `{0..9}`, `{000..010..2}` (zero padded, stepped, falling), `{a..e}`, nested and in sequence;
    a brace that is neither stays as it is.
    """
    start, stop = _first_braces(pattern)
    if start < 0:
        yield pattern
        return
    heads = _expand_group(pattern[start + 1 : stop])
    tails = list(expand_braces(pattern[stop + 1 :]))
    for head, tail in itertools.product(heads, tails):
        yield pattern[:start] + head + tail


def is_local_name(name: str) -> bool:
    """Tell whether an `hf` location is written as a path rather than as a hub name."""
    return name.startswith(("/", "./", "../", "~"))


def _named_source(config: DataConfig) -> tuple[str | None, str]:
    is_default = config.source == DataConfig.model_fields["source"].default
    sources = {
        "--dataset-file": config.dataset_file,
        "--source": None if is_default or config.source == config.dataset_file else config.source,
        "--hf-name": config.hf_name,
        "--wds-pattern": config.wds_pattern,
    }
    given = {flag: value for flag, value in sources.items() if value}
    if len(given) > 1:
        listing = ", ".join(f"{flag} {value}" for flag, value in given.items())
        raise ConfigError(f"more than one source: {listing}; give one of them")
    flag, text = next(iter(given.items()), ("--source", config.source))
    implied = {"--hf-name": "hf", "--wds-pattern": "webdataset"}.get(flag)
    wanted = config.dataset_backend
    if implied and wanted and implied != wanted:
        raise ConfigError(f"--dataset-backend {wanted} does not use {flag} {text}; give --dataset-backend {implied}")
    if wanted in ("hf", "webdataset") and not given:
        needed = "--hf-name" if wanted == "hf" else "--wds-pattern"
        raise ConfigError(f"--dataset-backend {wanted} needs a source; give {needed} or --source")
    return implied or wanted, text


def _hf_flags(config: DataConfig) -> dict[str, str | None]:
    split = config.hf_split if config.hf_split != DataConfig.model_fields["hf_split"].default else None
    return {"--hf-config": config.hf_config, "--hf-split": split, "--hf-revision": config.hf_revision}


def _with_hf_flags(spec: SourceSpec, config: DataConfig) -> SourceSpec:
    values = {}
    for (flag, value), name in zip(_hf_flags(config).items(), ("hf_config", "hf_split", "hf_revision"), strict=True):
        in_uri = getattr(spec, name)
        if value and in_uri and value != in_uri:
            raise ConfigError(f"{flag} {value} contradicts {spec.uri!r}; give it in one place")
        values[name] = in_uri or value
    split = values["hf_split"] or "train"
    if not re.fullmatch(r"\w+([.-]\w+)*", split):
        raise ConfigError(f"--hf-split: got {split!r}; give the name of one split, without slices or sums")
    return SourceSpec(
        backend="hf",
        location=spec.location,
        hf_config=values["hf_config"],
        hf_split=split,
        hf_revision=values["hf_revision"],
    )


def _parse_stdlib(text: str) -> SourceSpec:
    if text != STDLIB_URI:
        raise ConfigError(f"source: got {text!r}; the only source of that scheme is {STDLIB_URI}")
    return SourceSpec(backend="stdlib", location="stdlib")


def _parse_hf(rest: str) -> SourceSpec:
    rest = rest.removeprefix("hf://")
    match = _HF_FORM.fullmatch(rest)
    if not match:
        raise ConfigError(f"source: got {'hf://' + rest!r}; the form is hf://org/name@revision:config:split")
    name, revision = match["name"], None
    if not is_local_name(name):
        name = name.removeprefix("datasets/")
        # A relative folder may have any name; whether it exists is seen only when the source is resolved.
        if _HUB_NAME.fullmatch(name):
            name, _, revision = name.partition("@")
    return SourceSpec(
        backend="hf",
        location=name,
        hf_config=match["config"] or None,
        hf_split=match["split"] or None,
        hf_revision=revision or None,
    )


def _parse_tar(rest: str) -> SourceSpec:
    if rest.startswith("pipe:"):
        raise ConfigError(f"source: {rest!r} would run a shell command; give paths or http(s) URLs of tar shards")
    return SourceSpec(backend="webdataset", location=rest)


def _parse_files(path: str) -> SourceSpec:
    if "://" in path:
        raise ConfigError(f"source: cannot read {path!r} as files; download it, or give tar shards or an hf:// set")
    if _TAR_NAME.search(path):
        raise ConfigError(f"--dataset-backend custom cannot read tar shards ({path!r}); give webdataset")
    return SourceSpec(backend="custom", location=path)


def _first_braces(pattern: str) -> tuple[int, int]:
    """Return the span of the first group that expands, or (-1, -1)."""
    for start in (i for i, char in enumerate(pattern) if char == "{"):
        stop = _closing(pattern, start)
        if stop > 0 and _is_group(pattern[start + 1 : stop]):
            return start, stop
    return -1, -1


def _closing(pattern: str, start: int) -> int:
    depth = 0
    for i in range(start, len(pattern)):
        depth += {"{": 1, "}": -1}.get(pattern[i], 0)
        if depth == 0:
            return i
    return -1


def _is_group(body: str) -> bool:
    return len(_split_list(body)) > 1 or _RANGE.fullmatch(body) is not None


def _split_list(body: str) -> list[str]:
    """Split at the commas that are not inside inner braces."""
    items, depth, last = [], 0, 0
    for i, char in enumerate(body):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and depth == 0:
            items.append(body[last:i])
            last = i + 1
    return [*items, body[last:]]


def _expand_group(body: str) -> list[str]:
    if match := _RANGE.fullmatch(body):
        return _expand_range(match)
    return [word for item in _split_list(body) for word in expand_braces(item)]


def _expand_range(match: re.Match[str]) -> list[str]:
    low, high, step, first, last, letter_step = match.groups()
    if first:
        return [chr(code) for code in _inclusive(ord(first), ord(last), int(letter_step or 1))]
    is_padded = any(re.fullmatch(r"-?0\d+", end) for end in (low, high))
    width = max(len(low), len(high)) if is_padded else 0
    return [f"{number:0{width}d}" for number in _inclusive(int(low), int(high), int(step or 1))]


def _inclusive(low: int, high: int, step: int) -> range:
    step = abs(step) or 1
    if abs(high - low) // step >= MAX_EXPANSION:
        raise ConfigError(f"{{{low}..{high}}} expands to more than {MAX_EXPANSION:,} names; give a smaller range")
    return range(low, high + 1, step) if low <= high else range(low, high - 1, -step)
