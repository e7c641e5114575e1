"""Base of all configuration: frozen pydantic classes, a YAML file first, flags last.

A job declares one class whose fields are sections (`data`, `model`, `optim`, `run`). The same class is the YAML schema
(one mapping per section), the command line (flags without the section's name), and the JSON schema of a web form.
This module imports neither torch nor ray, so `--help` answers at once.

    config = parse(TrainHMSTConfig, ["--config", "run.yaml", "--learning-rate", "1e-3"])
"""

import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pydantic
import tyro
import yaml
from pydantic.fields import FieldInfo

from hsokv_ray.errors import ConfigError

_FLAG_STYLE = (
    tyro.conf.OmitArgPrefixes,
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.AvoidSubcommands,
)


class Config(pydantic.BaseModel):
    """A frozen section of configuration; unknown keys are errors, the docstring under a field is its help."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    aliases: ClassVar[dict[str, str]] = {}
    """Other names that a class's own validator understands -> the field they set."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise ConfigError(_one_line(error)) from None


ConfigT = TypeVar("ConfigT", bound=Config)


def parse(cls: type[ConfigT], argv: Sequence[str] | None = None, *, prog: str | None = None) -> ConfigT:
    """Build `cls` from `--config FILE` (optional, YAML) and the flags in `argv`, which win over the file.

    Args:
        cls: the job's configuration class.
        argv: the words after the program's name; default `sys.argv[1:]`.
        prog: the program's name in the help text.

    Raises:
        ConfigError: the file or one of its keys is wrong. A wrong flag prints what to do and exits with 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    path, words = _take_config_path(words)
    default = load_yaml(cls, path) if path else None
    return tyro.cli(
        cls,
        args=words,
        default=default if default is not None else tyro.MISSING_NONPROP,
        prog=prog,
        config=_FLAG_STYLE,
        description=_description(cls),
    )


def load_yaml(cls: type[ConfigT], path: str | Path) -> ConfigT:
    """Read `cls` from the YAML file at `path`; unknown keys get a suggestion. Raises `ConfigError`."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--config: cannot read {str(path)!r} ({error.strerror}); give the path of a YAML file"
        ) from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"--config: {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config: {path} holds a {type(values).__name__}; a mapping of sections is needed")
    _check_keys(cls, values, str(path))
    return cls(**values)


def dump_yaml(config: Config) -> str:
    """Return `config` as the YAML that `load_yaml` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def sections(cls: type[Config]) -> dict[str, type[Config]]:
    """Return the fields of `cls` that are sections themselves, by name."""
    found = {}
    for name, field in cls.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            found[name] = field.annotation
    return found


def flags(cls: type[Config]) -> list[str]:
    """Return every flag of `cls` as typed on the command line, sections flattened."""
    names = []
    for name, field in cls.model_fields.items():
        inner = sections(cls).get(name)
        names.extend(flags(inner) if inner else [flag(name, field)])
    return names


def flag(name: str, field: FieldInfo) -> str:
    """Return the flag of a field; for a positional one, its place holder: `--top-k`, `URI`."""
    if tyro.conf.Positional in field.metadata:
        return next((mark.metavar for mark in field.metadata if getattr(mark, "metavar", None)), name.upper())
    return "--" + name.replace("_", "-")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Return `name: old -> new` for each leaf in which two dumped configurations differ."""
    rows = []
    for key in sorted(old.keys() | new.keys()):
        a, b, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            rows.extend(differences(a, b, f"{name}."))
        elif a != b:
            rows.append(f"{name}: {a!r} -> {b!r}")
    return rows


def _take_config_path(words: list[str]) -> tuple[str | None, list[str]]:
    for i, word in enumerate(words):
        if word == "--config":
            if i + 1 == len(words):
                raise ConfigError("--config: got nothing; give the path of a YAML file")
            return words[i + 1], words[:i] + words[i + 2 :]
        if word.startswith("--config="):
            return word.removeprefix("--config="), words[:i] + words[i + 1 :]
    return None, words


def _description(cls: type[Config]) -> str:
    hint = "--config FILE.yaml may be given first: the same names, one mapping per section; flags win over it."
    return f"{(cls.__doc__ or '').strip()}\n\n{hint}"


def _check_keys(cls: type[Config], values: dict[str, Any], where: str) -> None:
    inner = sections(cls)
    for key, value in values.items():
        if key not in cls.model_fields and key not in cls.aliases:
            raise ConfigError(f"{where}: unknown key {key!r}; {_suggestion(str(key), cls)}")
        if key in inner and isinstance(value, dict):
            _check_keys(inner[key], value, f"{where}: {key}")


def _suggestion(key: str, cls: type[Config]) -> str:
    for section, section_cls in sections(cls).items():
        if key.replace("-", "_") in section_cls.model_fields:
            return f"it belongs under {section!r} as {key.replace('-', '_')!r}"
    names = list(cls.model_fields) + [n for c in sections(cls).values() for n in c.model_fields]
    close = difflib.get_close_matches(key.replace("-", "_"), names, n=3, cutoff=0.5)
    return f"did you mean {_either(close)}?" if close else f"known keys: {', '.join(cls.model_fields)}"


def _either(words: Iterable[str]) -> str:
    return " or ".join(repr(word) for word in words)


def _one_line(error: pydantic.ValidationError) -> str:
    parts = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "value_error":
            parts.append(message)
        else:
            parts.append(f"--{name.replace('_', '-')}: got {item['input']!r}; {message[0].lower()}{message[1:]}")
    return "; ".join(parts)
