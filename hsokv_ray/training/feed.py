"""What one worker reads: its batches in the run's fixed order, and its share of the held-out blocks."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hsokv_ray.data import (
    IGNORED,
    Batch,
    BlockStream,
    DataCursor,
    PartReader,
    ReadCounts,
    ShardPlan,
    cached_tokenizer,
    make_batch,
    read_in_process,
    read_pretokenized,
)
from hsokv_ray.data.validation import HeldOut
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.place import Place
from hsokv_ray.training.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """A batch on its way to the model; B blocks of T tokens."""

    input_ids: torch.Tensor
    """int64 [B, T]."""
    labels: torch.Tensor
    """int64 [B, T], next tokens, -100 where there is none."""
    position_ids: torch.Tensor | None
    """int64 [B, T] restarting at documents; None where documents are not masked from one another."""
    num_targets: int
    digest: str

    def to(self, device: torch.device) -> "TensorBatch":
        """Return the batch on `device`."""
        positions = None if self.position_ids is None else self.position_ids.to(device)
        return replace(self, input_ids=self.input_ids.to(device), labels=self.labels.to(device), position_ids=positions)


class Feed:
    """The data of one worker.

    Args:
        config: the job's configuration.
        epochs: passes over the documents; None: without end.
        folder: the run, with plan, tokenizer and held-out blocks prepared by the driver.
        place: this worker.
        use_ray_data: read in Ray tasks; else in this process. Pre-tokenised shards are mapped into this process.
    """

    def __init__(
        self, config: TrainHMSTConfig, *, epochs: float | None, folder: RunFolder, place: Place, use_ray_data: bool
    ) -> None:
        self._config, self._epochs, self._folder, self._place = config, epochs, folder, place
        self._use_ray_data = use_ray_data
        self.tokenizer = cached_tokenizer(str(folder.tokenizer))
        self.plan = ShardPlan.load(folder.plan)
        self._held_out = HeldOut.load(folder.held_out)
        self._cursor = DataCursor.start(self.plan.num_streams)
        self._counts_before: dict[str, int] = {}
        self._stream: BlockStream | None = None

    @property
    def is_finished(self) -> bool:
        """Whether this worker's documents are used up."""
        return self._opened().is_finished

    def next(self) -> TensorBatch:
        """Return the next batch; it may have no targets where some streams are longer than others."""
        blocks = self._opened().take(self._config.optim.batch_size)
        return self._tensors(make_batch(blocks, document_mask=self._document_mask, eos_id=self.tokenizer.eos_id))

    def seek(self, state: dict[str, Any]) -> None:
        """Go on where `state`, written by `state()`, says."""
        self.close()
        self._cursor = DataCursor.from_json(state["cursor"])
        self._counts_before = state["counts"]

    def state(self) -> dict[str, Any]:
        """Return where all workers' streams stand and what they have read; every worker takes part."""
        own = self._opened().cursor()
        streams = self._place.sum(torch.from_numpy(own.streams)).numpy()
        return {
            "cursor": DataCursor(streams=streams, num_blocks=own.num_blocks).to_json(),
            "counts": self._summed(self._opened().counts),
        }

    def counts(self) -> dict[str, int]:
        """Return documents, bytes, and all that was skipped or cut, over all workers and resumes.

        Parts that are being trained on count; a checkpoint leaves them out, because they are read again after it.
        """
        return self._summed(self._opened().counts + self._opened().counts_here)

    def _summed(self, counts: ReadCounts) -> dict[str, int]:
        own = counts.to_dict()
        summed = self._place.sum(torch.tensor(list(own.values()), dtype=torch.int64)).tolist()
        return {name: value + self._counts_before.get(name, 0) for name, value in zip(own, summed, strict=True)}

    def position(self) -> dict[str, float]:
        """Return the blocks consumed by all workers, and the passes over the documents this worker has begun."""
        cursor = self._opened().cursor()
        own = range(self._place.rank, self.plan.num_streams, self._place.world_size)
        return {"blocks": cursor.num_blocks, "epoch": float(np.mean([cursor.streams[i, 0] for i in own]))}

    @property
    def num_validation_blocks(self) -> int:
        """Held-out blocks, over all workers."""
        return self._held_out.num_blocks

    def validation_batches(self) -> Iterator[TensorBatch]:
        """Yield this worker's share of the held-out blocks, the same at every call.

        Every worker gets equally many batches, because sharded models exchange weights or tokens in each: where the
        blocks run out, the last ones are repeated without targets.
        """
        size, place = self._config.optim.batch_size, self._place
        held_out = list(self._held_out.batches(size, document_mask=self._document_mask, eos_id=self.tokenizer.eos_id))
        for start in range(0, len(held_out), place.world_size):
            index = start + place.rank
            if index < len(held_out):
                yield self._tensors(held_out[index])
            else:
                repeated = self._tensors(held_out[-1])
                yield replace(repeated, labels=torch.full_like(repeated.labels, IGNORED), num_targets=0)

    def close(self) -> None:
        """Stop reading."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    @property
    def _document_mask(self) -> bool:
        return self._config.data.document_mask

    def _opened(self) -> BlockStream:
        if self._stream is None:
            data = self._config.data
            self._stream = BlockStream(
                self.plan,
                self._reader(),
                seq_len=data.seq_len,
                stride=data.block_stride,
                epochs=self._epochs,
                rank=self._place.rank,
                world_size=self._place.world_size,
                cursor=self._cursor,
                pad_id=self.tokenizer.pad_id,
            )
        return self._stream

    def _reader(self) -> PartReader:
        if self._config.data.pretokenized:
            return read_pretokenized(self.plan)
        if not self._use_ray_data:
            return read_in_process(self.plan, tokenizer=self.tokenizer, split="train")
        from hsokv_ray.training.ray_data import read_with_ray

        return read_with_ray(
            self.plan,
            tokenizer_path=str(self._folder.tokenizer),
            split="train",
            num_cpus=self._config.run.data_cpus / self._config.run.num_workers,
        )

    def _tensors(self, batch: Batch) -> TensorBatch:
        return TensorBatch(
            input_ids=torch.from_numpy(np.ascontiguousarray(batch.input_ids)),
            labels=torch.from_numpy(np.ascontiguousarray(batch.labels)),
            position_ids=torch.from_numpy(batch.position_ids) if self._document_mask else None,
            num_targets=batch.num_targets,
            digest=batch.digest,
        )
