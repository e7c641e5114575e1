"""The training loop of one worker: steps, validation, checkpoints, resume. Runs with and without Ray.

Every worker runs the same loop on its own blocks. A worker's loss is the sum over its own targets divided by the
targets of the whole step, so gradients, losses and the router's counts are sums over workers and micro-batches: a step
does not depend on how its blocks are divided.
"""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hsokv_ray.models.balance import LoadBalancer, RouterMetrics
from hsokv_ray.training.checkpoint import CheckpointStore, Snapshot
from hsokv_ray.training.config import TrainHMSTConfig
from hsokv_ray.training.cost import warmup_steps
from hsokv_ray.training.failures import check_finite
from hsokv_ray.training.feed import Feed, TensorBatch
from hsokv_ray.training.host import Host
from hsokv_ray.training.metrics import MetricsWriter, Throughput
from hsokv_ray.training.parallel import FullState, Strategy
from hsokv_ray.training.place import Place
from hsokv_ray.training.run_folder import RunFolder
from hsokv_ray.training.schedule import learning_rate


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; saved in every checkpoint."""

    step: int = 0
    tokens: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    validations_without_gain: int = 0


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one optimiser step did, summed over workers."""

    loss: float
    aux_loss: float
    targets: int
    grad_norm: float
    learning_rate: float
    router: RouterMetrics | None
    wait_s: float


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run ended."""

    step: int
    tokens: int
    reason: str
    loss: float | None
    val_loss: float | None
    best_loss: float | None
    best_step: int | None


class Trainer:
    """One worker's share of a run.

    Args:
        config: the job's configuration.
        max_steps: optimiser steps the schedule spans.
        step_limit: steps after which the run ends; None: when the documents are used up.
        model: already prepared by `strategy`.
    """

    def __init__(
        self,
        config: TrainHMSTConfig,
        *,
        max_steps: int,
        step_limit: int | None,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        strategy: Strategy,
        feed: Feed,
        folder: RunFolder,
        place: Place,
        host: Host,
        flops_per_token: float,
    ) -> None:
        self.config, self.max_steps, self.step_limit = config, max_steps, step_limit
        self.model, self.optimizer, self.strategy = model, optimizer, strategy
        self.feed, self.folder, self.place, self.host = feed, folder, place, host
        self.flops_per_token = flops_per_token
        self.progress = Progress()
        self.store = CheckpointStore(folder.checkpoints, keep=config.run.keep)
        kind = config.model.balance
        self.balancer = LoadBalancer(strategy.bare(model), rate=config.model.balance_rate, kind=kind)
        self.meter = Throughput()
        self.writer: MetricsWriter | None = None
        self._val_loss: float | None = None
        self._last: StepResult | None = None

    def run(self) -> RunSummary:
        """Train until the steps, the documents or the patience are used up; return how it ended."""
        self.resume()
        if self.place.is_first:
            self.writer = MetricsWriter(self.folder.path, resume_step=self.progress.step)
        self.host.event("started", step=self.progress.step, max_steps=self.max_steps)
        reason = self._train()
        self._finish(reason)
        return RunSummary(
            step=self.progress.step,
            tokens=self.progress.tokens,
            reason=reason,
            loss=self._last.loss if self._last else None,
            val_loss=self._val_loss,
            best_loss=self.progress.best_loss,
            best_step=self.progress.best_step,
        )

    def resume(self) -> None:
        """Take up the newest complete checkpoint of the run folder, if there is one."""
        found = self.store.latest() if self.place.is_first else None
        for damaged in found.damaged if found else ():
            self.host.event("note", text=f"warning: {damaged}; an older checkpoint is taken")
        step = self.place.broadcast_int(found.step if found else -1)
        if step < 0:
            return
        snapshot = self.store.load(self.store.path_of(step))
        self.strategy.load_full_state(
            self.model, self.optimizer, FullState(model=snapshot.model, optimizer=snapshot.optimizer)
        )
        self.progress = Progress(**snapshot.state["progress"])
        self.feed.seek(snapshot.state["data"])
        torch.set_rng_state(snapshot.rng_state)
        self.host.event("note", text=f"resumed from step {self.progress.step:,}")

    def _train(self) -> str:
        while self.progress.step != self.step_limit:
            result = self._step()
            if result is None:
                return "every document was read"
            self._after_step(result)
            patience = self.config.run.patience
            if patience is not None and self.progress.validations_without_gain >= patience:
                return f"no better validation loss in {patience} validations"
        return "all steps done"

    def _step(self) -> StepResult | None:
        """Make one optimiser step; None where no worker has a target left."""
        started = time.perf_counter()
        batches, targets = self._next_batches()
        wait_s = time.perf_counter() - started
        if targets == 0:
            return None
        self.model.train()
        losses = torch.zeros(2, dtype=torch.float64)
        for i, batch in enumerate(batches):
            with self.strategy.accumulate(self.model, last=i == len(batches) - 1):
                losses += self._forward_backward(batch.to(self.place.device), targets)
        self.strategy.finish_gradients(self.model)
        loss, aux_loss = self.place.sum(losses).tolist()
        if not math.isfinite(loss):
            self._refuse(loss, batches)
        router = self.balancer.step(self.progress.step / self.max_steps, group=self.place.group)
        grad_norm = self.strategy.clip_gradients(self.model, self.config.optim.grad_clip or math.inf)
        rate = self._apply_optimizer()
        self.progress.step += 1
        self.progress.tokens += targets
        return StepResult(
            loss=loss - aux_loss,
            aux_loss=aux_loss,
            targets=targets,
            grad_norm=grad_norm,
            learning_rate=rate,
            router=router,
            wait_s=wait_s,
        )

    def _next_batches(self) -> tuple[list[TensorBatch], int]:
        """Return the micro-batches of the next step with targets, and the targets over all workers; 0 at the end."""
        while True:
            batches = [self.feed.next() for _ in range(self.config.optim.gradient_accumulation_steps)]
            own = [sum(batch.num_targets for batch in batches), int(not self.feed.is_finished)]
            targets, unfinished = self.place.sum(torch.tensor(own)).tolist()
            if targets or not unfinished:
                return batches, targets

    def _refuse(self, loss: float, batches: list[TensorBatch]) -> None:
        """End the run before a loss that is not a number spoils the weights; name the tokens of every worker."""
        digests = self.place.gather_text("+".join(batch.digest for batch in batches))
        check_finite(
            loss,
            step=self.progress.step + 1,
            batch_digest=" ".join(digests),
            last_checkpoint=self.store.last_saved,
        )

    def _forward_backward(self, batch: TensorBatch, targets: int) -> torch.Tensor:
        with self.place.autocast():
            output = self.model(
                input_ids=batch.input_ids,
                position_ids=batch.position_ids,
                shift_labels=batch.labels,
                num_items_in_batch=targets,
                use_cache=False,
            )
        output.loss.backward()
        return torch.stack([output.loss.detach(), output.aux_loss.detach()]).double().cpu()

    def _apply_optimizer(self) -> float:
        optim = self.config.optim
        rate = learning_rate(
            self.progress.step,
            peak=optim.learning_rate,
            warmup_steps=warmup_steps(self.config, self.max_steps),
            max_steps=self.max_steps,
            kind=optim.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _after_step(self, result: StepResult) -> None:
        run, step = self.config.run, self.progress.step
        last = step == self.step_limit
        self._last = result
        self.meter.step(result.targets, wait_s=result.wait_s)
        validated = run.eval_every and (step % run.eval_every == 0 or last)
        improved = self._validate() if validated else False
        if step % run.log_every == 0 or validated:
            self._log(result, val_loss=self._val_loss if validated else None)
        if step % run.save_every == 0 or last or improved:
            self._save(best=improved)

    @torch.no_grad()
    def _validate(self) -> bool:
        """Measure the loss on the held-out blocks; return whether it is the best so far."""
        if self.feed.num_validation_blocks == 0:
            return False
        with self.meter.paused():
            self.model.eval()
            total = torch.zeros(2, dtype=torch.float64)
            for batch in self.feed.validation_batches():
                batch = batch.to(self.place.device)
                with self.place.autocast():
                    output = self.model(
                        input_ids=batch.input_ids,
                        position_ids=batch.position_ids,
                        shift_labels=batch.labels,
                        num_items_in_batch=1,
                        use_cache=False,
                    )
                loss = (output.loss - output.aux_loss).double().cpu()
                total += torch.stack([loss, torch.tensor(float(batch.num_targets), dtype=torch.float64)])
            loss_sum, targets = self.place.sum(total).tolist()
        self._val_loss = val_loss = loss_sum / targets
        improved = self.progress.best_loss is None or val_loss < self.progress.best_loss
        if improved:
            self.progress.best_loss, self.progress.best_step = val_loss, self.progress.step
            self.progress.validations_without_gain = 0
        else:
            self.progress.validations_without_gain += 1
        return improved

    def _log(self, result: StepResult, *, val_loss: float | None) -> None:
        row = self._row(result, val_loss)
        if self.writer is not None:
            self.writer.write(row)
            self.host.event("row", **row)

    def _row(self, result: StepResult, val_loss: float | None) -> dict[str, Any]:
        rates = self.meter.rates(flops_per_token=self.flops_per_token, peak_flops=self.place.peak_flops)
        return {
            "step": self.progress.step,
            "max_steps": self.max_steps,
            "loss": result.loss,
            "val_loss": val_loss,
            "aux_loss": result.aux_loss,
            "lr": result.learning_rate,
            "grad_norm": result.grad_norm,
            "tokens": self.progress.tokens,
            **asdict(rates),
            "eta_s": self.meter.eta_s(max((self.step_limit or self.max_steps) - self.progress.step, 0)),
            "memory_bytes": self.place.memory_bytes(),
            "data": self.feed.position(),
            "counts": self.feed.counts(),
            "router": asdict(result.router) if result.router else None,
        }

    def _save(self, *, best: bool) -> None:
        """Write a checkpoint; every worker takes part in collecting it, the first one writes."""
        with self.meter.paused():
            state = self.strategy.full_state(self.model, self.optimizer)
            data = self.feed.state()
            if self.place.is_first:
                snapshot = Snapshot(
                    step=self.progress.step,
                    model=state.model,
                    optimizer=state.optimizer,
                    state={"progress": asdict(self.progress), "data": data},
                    rng_state=torch.get_rng_state(),
                    model_config=self.strategy.bare(self.model).config,
                    tokenizer=self.folder.tokenizer,
                )
                path = self.store.save(snapshot, best=best)
                self.host.event("saved", path=str(path), best=best)
            self.place.barrier()
            losses = {"loss": self._last.loss if self._last else None, "val_loss": self._val_loss}
            self.host.report({"step": self.progress.step, **{k: v for k, v in losses.items() if v is not None}})

    def _finish(self, reason: str) -> None:
        if self._last is not None and self.progress.step != self.step_limit:
            improved = self._validate()
            self._log(self._last, val_loss=self._val_loss)
            self._save(best=improved)
        if self.writer is not None:
            self.writer.close()
        self.host.event("note", text=f"training ended at step {self.progress.step:,}: {reason}")
