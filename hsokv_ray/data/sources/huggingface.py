"""Hugging Face data sets: the file list is resolved once, with the commit pinned; the files are read like any other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from hsokv_ray.data.config import DataConfig
from hsokv_ray.data.uri import SourceSpec, is_local_name
from hsokv_ray.env import hub_token
from hsokv_ray.errors import DataError

ResultT = TypeVar("ResultT")


def list_hub_files(spec: SourceSpec, config: DataConfig) -> list[str]:
    """Return the files of the data set's split: paths, or `hf://datasets/name@commit/path` URLs.

    A local folder of parquet, jsonl, ... files and one written by `save_to_disk` work without a network. With
    `--no-hf-streaming` the set is prepared in the cache of `datasets`, and its arrow files are returned.

    Raises:
        DataError: the hub cannot be reached, or the data set, configuration or split does not exist.
    """
    name = str(Path(spec.location).expanduser())
    is_folder = Path(name).is_dir()
    if is_folder and _is_saved(Path(name)):
        return _cached_files(_from_disk(name, spec), spec)
    if is_local_name(spec.location) and not is_folder:
        raise DataError(f"{spec.uri}: there is no folder {name!r}; give a data set folder or a name on the hub")
    token = hub_token(config.hf_token_env)
    revision = None if is_folder else _ask(spec, lambda: _commit(name, spec.hf_revision, token))
    arguments = {
        "path": name,
        "name": spec.hf_config,
        "revision": revision,
        "token": token,
        "cache_dir": config.hf_cache_dir,
    }
    if config.hf_streaming:
        return _ask(spec, lambda: _streamed_files(arguments, spec))
    return _ask(spec, lambda: _prepared_files(arguments, spec, config.hf_num_workers))


def _commit(name: str, revision: str | None, token: str | None) -> str | None:
    from huggingface_hub import HfApi

    return HfApi(token=token).dataset_info(name, revision=revision).sha


def _streamed_files(arguments: dict[str, Any], spec: SourceSpec) -> list[str]:
    import datasets

    builder = datasets.load_dataset_builder(**arguments)
    files: Any = builder.config.data_files
    if not isinstance(files, dict) or spec.hf_split not in files:
        raise _no_split(spec, files or {})
    return [str(file) for file in files[spec.hf_split]]


def _prepared_files(arguments: dict[str, Any], spec: SourceSpec, num_workers: int) -> list[str]:
    import datasets

    return _cached_files(datasets.load_dataset(**arguments, num_proc=num_workers), spec)


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _from_disk(folder: str, spec: SourceSpec) -> Any:
    import datasets

    return _ask(spec, lambda: datasets.load_from_disk(folder))


def _cached_files(dataset: Any, spec: SourceSpec) -> list[str]:
    """Return the arrow files of a split; a set saved without splits is its only split."""
    if isinstance(dataset, dict):
        if spec.hf_split not in dataset:
            raise _no_split(spec, dataset)
        dataset = dataset[spec.hf_split]
    return [entry["filename"] for entry in dataset.cache_files]


def _no_split(spec: SourceSpec, splits: Any) -> DataError:
    names = ", ".join(map(str, splits))
    return DataError(f"{spec.uri}: there is no split {spec.hf_split!r}; --hf-split can be {names}")


def _ask(spec: SourceSpec, call: Callable[[], ResultT]) -> ResultT:
    """Run `call`; whatever the hub's libraries raise becomes one line that also says how to go on without a hub."""
    try:
        return call()
    except DataError:
        raise
    # The libraries raise their own, their HTTP client's and plain ValueErrors, with no common base.
    except Exception as error:
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"{spec.uri}: cannot be resolved ({type(error).__name__}: {cause}); without a network give a local data "
            "set folder (hf:///path/to/folder) or files (--source path)"
        ) from error
