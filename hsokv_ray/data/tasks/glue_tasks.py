"""The GLUE tasks that are used few-shot: their columns, labels and files (Wang et al. 2019)."""

from dataclasses import dataclass
from typing import Literal

from hsokv_ray.errors import DataError

GlueName = Literal["SST-2", "MNLI", "RTE", "MRPC", "CoLA"]


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """Where a task's texts and labels stand."""

    name: GlueName
    labels: tuple[str, ...]
    """Names of the labels 0, 1, ...; a file may also hold the numbers."""
    hub_config: str
    """Configuration of the data set nyu-mll/glue."""
    hub_columns: tuple[str, ...]
    columns: tuple[str, ...] = ()
    """Columns of the texts in the TSV files, by their heading."""
    label_column: str = "label"
    num_columns: int = 2
    """Columns a row has at least."""
    headless: tuple[int, int] | None = None
    """(label, text) columns of files without a heading."""
    train_files: tuple[str, ...] = ("train.tsv",)
    dev_files: tuple[str, ...] = ("dev.tsv",)
    folders: tuple[str, ...] = ()
    """Folders the files may be in, under the data folder."""

    @property
    def hub_test(self) -> str:
        """Split of the hub's data set that is the test here: GLUE's labelled development set."""
        return "validation_matched" if self.name == "MNLI" else "validation"

    def label(self, text: str, *, where: str) -> int:
        """Return the number of a label given by name or number. Raises `DataError` for another one."""
        if text in self.labels:
            return self.labels.index(text)
        if text.isdecimal() and int(text) < len(self.labels):
            return int(text)
        allowed = ", ".join(f"{name} ({i})" for i, name in enumerate(self.labels))
        raise DataError(f"{where}: label {text!r} is none of {allowed}; get the file again")


_ENTAILMENT = ("entailment", "not_entailment")

GLUE_TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            name="SST-2",
            labels=("negative", "positive"),
            hub_config="sst2",
            hub_columns=("sentence",),
            columns=("sentence",),
            folders=("SST-2", "glue_sst2"),
        ),
        GlueTask(
            name="MNLI",
            labels=("entailment", "neutral", "contradiction"),
            hub_config="mnli",
            hub_columns=("premise", "hypothesis"),
            columns=("sentence1", "sentence2"),
            label_column="gold_label",
            num_columns=4,
            dev_files=("dev_matched.tsv",),
            train_files=("train.tsv", "train_sample.tsv"),
            folders=("MNLI", "glue_mnli"),
        ),
        GlueTask(
            name="RTE",
            labels=_ENTAILMENT,
            hub_config="rte",
            hub_columns=("sentence1", "sentence2"),
            columns=("sentence1", "sentence2"),
            num_columns=4,
            train_files=("train.tsv", "RTE_train_full.tsv"),
            dev_files=("dev.tsv", "RTE_dev.tsv"),
            folders=("RTE", "glue_rte_cola"),
        ),
        GlueTask(
            name="MRPC",
            labels=("not_equivalent", "equivalent"),
            hub_config="mrpc",
            hub_columns=("sentence1", "sentence2"),
            columns=("#1 String", "#2 String"),
            label_column="Quality",
            num_columns=5,
            folders=("MRPC",),
        ),
        GlueTask(
            name="CoLA",
            labels=("unacceptable", "acceptable"),
            hub_config="cola",
            hub_columns=("sentence",),
            num_columns=4,
            headless=(1, 3),
            train_files=("train.tsv", "CoLA_train.tsv"),
            dev_files=("dev.tsv", "CoLA_dev.tsv"),
            folders=("CoLA", "glue_rte_cola"),
        ),
    )
}


def glue_task(name: str) -> GlueTask:
    """Return a task by name, whatever its case. Raises `DataError` for an unknown one."""
    found = {key.casefold().replace("-", ""): task for key, task in GLUE_TASKS.items()}
    task = found.get(name.casefold().replace("-", ""))
    if task is None:
        raise DataError(f"GLUE task: got {name!r}; give one of {', '.join(GLUE_TASKS)}")
    return task
