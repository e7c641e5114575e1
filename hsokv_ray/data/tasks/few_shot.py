"""Few-shot GLUE: K training and K validation examples per class, tested on GLUE's development set.

The published 16-shot splits of LM-BFF (Gao et al. 2021) with their five seeds are used where the folder has them;
otherwise the examples are drawn by seed from GLUE's training set, read from TSV folders or through `datasets`.

    task = FewShotGlue("SST-2", "/data")
    for seed in task.seeds: splits = task.splits(seed)
"""

from pathlib import Path

import numpy as np

from hsokv_ray.data.tasks.base import Examples, Splits, without_inputs_of
from hsokv_ray.data.tasks.glue_files import (
    HUB_NAME,
    Pools,
    published_folder,
    read_hub_pools,
    read_parquet_pools,
    read_published,
    read_published_test,
    read_tsv_pools,
    read_tsv_test,
)
from hsokv_ray.data.tasks.glue_tasks import glue_task
from hsokv_ray.errors import DataError

PUBLISHED_SEEDS = (13, 21, 42, 87, 100)
PUBLISHED_SHOTS = 16


class FewShotGlue:
    """One task of GLUE, few-shot.

    Args:
        name: SST-2, MNLI, RTE, MRPC or CoLA.
        folder: data folder: holds glue_16shot (or is it), GLUE's `SST-2/train.tsv` and the like, parquet files as
            nyu-mll/glue has them (see `read_parquet_pools`), or is a folder of `datasets`. None: only `datasets`, from
            the hub.
        shots: examples per class in training, and again in validation.
        allow_download: whether the hub may be asked where the folder has nothing.

    Raises `DataError` that says how to get the data where there is none.
    """

    def __init__(
        self, name: str, folder: str | Path | None, *, shots: int = PUBLISHED_SHOTS, allow_download: bool = False
    ) -> None:
        self._task = glue_task(name)
        self.name = self._task.name
        self.num_labels = len(self._task.labels)
        self.label_names = self._task.labels
        if shots < 1:
            raise DataError(f"shots: got {shots}; at least 1 example per class is needed")
        self._shots = shots
        self._published: dict[tuple[int, str], Examples] = {}
        self._pools = self._read(Path(folder).expanduser() if folder is not None else None, allow_download)

    @property
    def source(self) -> str:
        """Where the examples come from, for tables."""
        return self._pools.source

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds to report: the published ones, whatever the source."""
        return PUBLISHED_SEEDS

    def splits(self, seed: int) -> Splits:
        """Return the splits of a seed.

        Raises `DataError` for a seed that was not published, or a class with too few examples to draw from.
        """
        train, validation = self._from_published(seed) if self._published else self._drawn(seed)
        return Splits(
            name=self.name,
            num_labels=self.num_labels,
            train=train,
            validation=validation,
            test=self._pools.test,
            source=self.source,
        )

    def _read(self, folder: Path | None, allow_download: bool) -> Pools:
        if folder is not None:
            if not folder.is_dir():
                raise DataError(f"{self.name}: there is no folder {str(folder)!r}; {self._how()}")
            pools = self._read_published(folder) or read_tsv_pools(folder, self._task)
            pools = pools or read_parquet_pools(folder, self._task)
            if pools is None and (any(folder.glob("dataset_*.json")) or any(folder.glob("*.parquet"))):
                pools = read_hub_pools(self._task, str(folder))
            if pools is not None:
                return pools
        if not allow_download:
            where = f"{str(folder)!r} does not hold it" if folder is not None else "no folder is given"
            raise DataError(f"{self.name}: {where}; {self._how()}")
        return read_hub_pools(self._task, HUB_NAME)

    def _read_published(self, folder: Path) -> Pools | None:
        place = published_folder(folder)
        if place is None or self._shots != PUBLISHED_SHOTS:
            return None
        published = read_published(place, self._task)
        if not published:
            return None
        test = read_published_test(place, self._task)
        # MNLI's development set is too large to stand beside the splits, and is read from GLUE's own file.
        test = test or read_tsv_test(folder, self._task) or read_tsv_test(place.parent, self._task)
        if test is None:
            raise DataError(
                f"{self.name}: {str(place)!r} holds the training splits but no test set; put GLUE's "
                f"{self._task.dev_files[0]} into {place.parent / self._task.folders[0]}"
            )
        self._published = published
        everything = next(iter(published.values()))
        return Pools(everything, test, "published LM-BFF splits")

    def _from_published(self, seed: int) -> tuple[Examples, Examples]:
        if (seed, "train") not in self._published or (seed, "dev") not in self._published:
            known = sorted({key for key, _ in self._published})
            raise DataError(f"{self.name}: got seed {seed}; splits are published for {', '.join(map(str, known))}")
        return self._published[seed, "train"], self._published[seed, "dev"]

    def _drawn(self, seed: int) -> tuple[Examples, Examples]:
        """Draw training and validation examples that are in neither each other nor the test."""
        pool = _without_repeats(without_inputs_of(self._pools.train, self._pools.test))
        order = np.random.default_rng(seed).permutation(len(pool))
        train, validation = [], []
        for label in range(self.num_labels):
            of_label = order[pool.labels[order] == label]
            if len(of_label) < 2 * self._shots:
                got = f"{len(of_label)} examples labelled {self.label_names[label]}"
                raise DataError(
                    f"{self.name}: got {got}; {self._shots} shots need {2 * self._shots}: give fewer --shots"
                )
            train += of_label[: self._shots].tolist()
            validation += of_label[self._shots : 2 * self._shots].tolist()
        return pool.select(train), pool.select(validation)

    def _how(self) -> str:
        files = f"{self._task.folders[0]}/{self._task.train_files[0]} and {self._task.dev_files[0]}"
        return (
            f"give a folder with {files} (https://gluebenchmark.com/tasks), with LM-BFF's glue_16shot, a clone of "
            f"{HUB_NAME} or a folder of `datasets`, or allow the download of {HUB_NAME} with --allow-download"
        )


def _without_repeats(examples: Examples) -> Examples:
    first = {digest: i for i, digest in reversed(list(enumerate(examples.digests())))}
    return examples.select(sorted(first.values()))
