"""A classifier in progress: epochs, evaluations, checkpoints.

The parts are timm's (models, augmentation, optimisers, schedules, averages of weights); `accelerate` knows the
devices, the precision and the processes. A step of the run is an epoch. Everything random in an epoch follows from
the seed and the number of the epoch, so a run that is resumed is the run that was not interrupted.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from itertools import chain
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, Subset

from entropyfloor.extras import brief, out_of_memory_hint
from entropyfloor.runs import Checkpoint, Run
from entropyfloor.runs.memory import check_memory
from entropyfloor.runs.processes import terminated_as_interrupted
from entropyfloor.runs.progress import Progress
from entropyfloor.torch.checkpoint import arrays_of, pack, tensors_below, unpack_optimiser
from entropyfloor.torch.seeding import derived, seed
from entropyfloor.vision import data, metrics
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.model import RawLogits, build_model, check_size, load_weights
from entropyfloor.vision.regularisers import classification_loss, jensen_shannon, smoothing_out_of_reach

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
INIT, EPOCH, ORDER = range(3)
"""Streams of random numbers."""
MANY = 10_000
"""How many images take long enough to check that progress is shown."""
PIXEL = 3 * 5
"""Bytes of a pixel of three channels: as it comes, and as a float32."""
SMALLER = "choose a smaller batch_size or input_size"
CHECK_EVERY = 50
"""Updates between looks at the loss: each one waits for the device."""


class Trainer:
    """A classifier in progress.

    Args:
        config: Settings; `self.config` is what they resolve to.
        classes: Names of the classes in the order of the outputs, if the run has begun; by default in that of the
            dataset.

    Raises:
        ValueError: The data is not there, or has other classes than `classes` or another number of them than
            `num_classes`; the floor is out of reach; the checkpoint is of another model; the device does not know
            the precision; a batch is too large for the memory, or too small for batch norm.
    """

    def __init__(self, config: VisionConfig, classes: Sequence[str] | None = None) -> None:
        config = config.resolved()
        if config.threads:
            torch.set_num_threads(config.threads)
        AcceleratorState._reset_state()  # one process may train several, and not all in the same precision
        self.accelerator = Accelerator(mixed_precision=config.precision)
        if config.precision != "no" and not self.accelerator.native_amp:  # it would be ignored
            kind = self.accelerator.device.type
            raise ValueError(
                f"precision={config.precision!r} is not for a device of type {kind}: choose bf16 or no"
            )
        self.leads = self.accelerator.is_main_process
        self.epoch = 0

        home = Path(config.data_dir)
        with self.accelerator.main_process_first():  # which may have something to download
            train, test = (data.load(config.dataset, home, split, download=config.download) for split in SPLITS)
        if classes is not None:
            train, test = train.numbered_as(classes), test.numbered_as(classes)
        self.classes = agreed_classes(config, train.classes, test.classes)
        self.config = config = replace(config, num_classes=len(self.classes))
        self._check_memory()
        labels = np.array([*train.labels, -1, *test.labels], np.int64)
        self._data = zlib.crc32(labels.tobytes())  # by which they are known again
        self._source = train
        self.train_loader, self.test_loader, self.ood_loader = self._loaders(train, test)
        self.normalise = data.Normalise(train.statistics).to(self.accelerator.device)

        seed(config.seed, INIT)
        self.model, self.output = build_model(self.config, self.classes)
        self.optimiser = self._optimiser()
        self.updates_per_epoch = len(self.train_loader)
        self.scheduler, _ = create_scheduler_v2(
            self.optimiser,
            # Only the newest of timm know a constant; a step schedule that never falls is one in all of them.
            "step" if config.schedule == "constant" else config.schedule,
            decay_rate=1.0,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            warmup_lr=1e-5,  # timm's
            step_on_epochs=False,
            updates_per_epoch=self.updates_per_epoch,
        )
        device = self.accelerator.device
        at_once = config.batch_size * max(1, config.aug_splits)
        with out_of_memory_hint(SMALLER):
            check_size(self.model.to(device), int(config.input_size or 0), at_once, device)
        self.average = ModelEmaV3(self.model, config.ema, use_warmup=True) if config.ema else None
        learner: nn.Module = torch.compile(self.model) if config.compile else self.model  # type: ignore[assignment]
        self.learner, self.prepared = self.accelerator.prepare(learner, self.optimiser)
        self.mixup = None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=0.0, num_classes=len(self.classes))
        mode, splits = config.erase_mode, config.aug_splits
        self.erase = RandomErasing(config.erase, mode=mode, num_splits=splits, device=device)

    def fit(self, run: Run | None) -> None:
        """Train to the end, with an evaluation before it and after each epoch.

        Ctrl-C and SIGTERM stop at once: what follows the last checkpoint is done again.

        Args:
            run: Where to write; None in the processes that only help.
        """
        config = self.config
        alone = parent_process() is None  # or one of several processes that share a terminal
        shown = Progress(
            config.epochs * self.updates_per_epoch,
            unit="updates",
            label="" if alone else f"seed {config.seed}",
            bar=alone and self.leads,
        )
        writing = run.recording() if run else nullcontext()
        with writing, shown as progress, out_of_memory_hint(SMALLER), terminated_as_interrupted():
            try:
                if self.epoch == 0:  # also to see that every image can be read, before there is much to lose
                    self._evaluate({}, run, progress)
                    self._check_images(progress)
                while self.epoch < config.epochs:
                    learned = self._train_epoch(run, progress)
                    self.epoch += 1
                    self._evaluate(learned, run, progress)
                    if run and (self.epoch % config.checkpoint_every == 0 or self.epoch == config.epochs):
                        self.save(run)
            except KeyboardInterrupt:
                way = f": continue with: entropyfloor train vision --resume {run.path}" if run else ""
                raise KeyboardInterrupt(f"in epoch {self.epoch + 1}{way}") from None

    @property
    def promise(self) -> dict[str, float]:
        """The floor in nats, if there is one; that of Eq. 15 as printed is the number that the paper promises."""
        floor = self.config.min_entropy or self.config.temperature_floor
        return {} if floor is None else {"floor": floor}

    @property
    def out_of_reach(self) -> str | None:
        """What is to be said of a loss that asks for more than the floor allows."""
        config = self.config
        if not (config.min_entropy and config.label_smoothing):
            return None
        return smoothing_out_of_reach(
            int(config.num_classes or 0),
            config.min_entropy,
            config.label_smoothing,
            tau=config.tau,
            floor=config.floor,
            inverse=config.inverse,
        )

    @property
    def judged(self) -> nn.Module:
        """The model that is evaluated: the average of the weights, where there is one."""
        return self.average.module if self.average else self.model

    def judge(self) -> tuple[metrics.Predictions, Tensor | None]:
        """What the model says of the test images, and how confident it is of the other ones."""
        predictions = metrics.concatenate([metrics.predict(*batch) for batch in self._outputs(self.test_loader)])
        if self.ood_loader is None:
            return predictions, None
        confidence = [metrics.top_confidence(logits) for logits, _, _ in self._outputs(self.ood_loader)]
        return predictions, torch.cat(confidence)

    def save(self, run: Run) -> None:
        """Write everything that `restore` needs."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.module.state_dict().items()}
        scaler = self.accelerator.scaler
        state = {
            "optimiser": pack(self.optimiser.state_dict(), "optimiser", tensors),
            "scaler": scaler.state_dict() if scaler else None,
            "data": self._data,
            "classes": list(self.classes),
        }
        run.save(self.epoch, arrays_of(tensors), state)

    def check_data(self, checkpoint: Checkpoint) -> None:
        """Refuse to continue with other images than those of the run.

        Raises:
            ValueError: Their classes have other names or another order, or they have other labels.
        """
        classes = recorded_classes(checkpoint) or self.classes
        if unlike := data.difference(classes, self.classes):
            raise ValueError(f"the classes in data_dir={self.config.data_dir} are not those of the run: {unlike}")
        if checkpoint.state.get("data", self._data) != self._data:
            raise ValueError(
                f"the images in data_dir={self.config.data_dir} are not those that the run began with"
            )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of a run with the same settings.

        Raises:
            ValueError: It is of another model.
        """
        arrays, state, where = checkpoint.arrays, checkpoint.state, f"checkpoint of epoch {checkpoint.step}"
        with checkpoint.restoring():
            load_weights(self.model, tensors_below("model/", arrays), where)
            if self.average:
                load_weights(self.average.module, tensors_below("average/", arrays), where)
            self.optimiser.load_state_dict(unpack_optimiser(state["optimiser"], tensors_below("", arrays)))
            if self.accelerator.scaler and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        self.epoch = checkpoint.step

    # --- parts of an epoch -------------------------------------------------------------------------------

    def _check_images(self, progress: Progress) -> None:
        """Decode every training image that is in a file once: a damaged one would stop an epoch halfway.

        Raises:
            UnreadableImageError: Some cannot be read; the message names them.
        """
        faults, processes = data.Faults(self._source), self.accelerator.num_processes
        if isinstance(self._source.store, data.Arrays):
            return
        mine = range(self.accelerator.process_index, len(faults), processes)
        loader = DataLoader(Subset(faults, mine), 32, num_workers=self.config.workers, collate_fn=list)
        found, begun = {}, time.perf_counter()
        for done, (i, fault) in enumerate(zip(mine, chain.from_iterable(loader), strict=True)):
            if fault:
                found[i] = fault
            if self.leads and len(faults) >= MANY and done % 1000 == 0:
                left = (len(mine) - done) * (time.perf_counter() - begun) / max(done, 1)
                detail = f", {timedelta(seconds=round(left))} left" if done else ""
                progress.busy(0, f"checking that all {len(faults):,} training images can be read", detail)
        if found:
            first, *others = found
            names = data.listed([self._source.store.name(i) for i in others])
            raise data.UnreadableImageError(found[first] + (f"; nor can {names}" if others else ""))

    def _evaluate(self, learned: dict[str, float], run: Run | None, progress: Progress) -> None:
        try:
            found = metrics.summarise(*self.judge()) | self.promise | learned
        except Exception:
            if run and self.epoch > 0:  # the same images would fail again: a resume goes on behind them
                self.save(run)
            raise
        if run:
            run.log(self.epoch, found)
            progress.report(self.epoch * self.updates_per_epoch, told(found))

    def _train_epoch(self, run: Run | None, progress: Progress) -> dict[str, float]:
        """One pass over the training images; the mean loss and the speed."""
        seed(self.config.seed, EPOCH, self.epoch, self.accelerator.process_index)
        self.order.manual_seed(derived(self.config.seed, ORDER, self.epoch))  # the same in every process
        self.learner.train()
        total, seen, begun = torch.zeros((), device=self.accelerator.device), 0, time.perf_counter()
        for i, (images, target) in enumerate(self.train_loader):
            update = self.epoch * self.updates_per_epoch + i
            self.scheduler.step_update(update)
            loss = self._update(images, target)
            if self.average:
                self.average.update(self.model, step=update + 1)
            total, seen = total + loss, seen + len(target) // max(1, self.config.aug_splits)
            progress.advance(update + 1)
            if i % CHECK_EVERY == 0 or i + 1 == self.updates_per_epoch:
                self._check_finite(total / (i + 1), run, images, target)
        if self.accelerator.num_processes > 1:
            for model in filter(None, (self.model, self.average)):
                distribute_bn(model, self.accelerator.num_processes, reduce=True)
        rate = seen * self.accelerator.num_processes / (time.perf_counter() - begun)
        mean = self.accelerator.reduce(total / self.updates_per_epoch, "mean").item()
        return {"loss": mean, "images_per_second": rate, "learning_rate": self.optimiser.param_groups[0]["lr"]}

    def _update(self, images: Tensor, target: Tensor) -> Tensor:
        config = self.config
        images = self.normalise(images)
        if config.erase:
            images = self.erase(images)
        if self.mixup:
            images, target = self.mixup(images, target)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            logits = self.output(self.learner(images))
        clean = slice(len(logits) // config.aug_splits) if config.jsd else slice(None)
        loss = classification_loss(
            logits[clean],
            target[clean],
            label_smoothing=config.label_smoothing,
            focal_gamma=config.focal_gamma,
            confidence_penalty=config.confidence_penalty,
        )
        if config.jsd:
            loss = loss + config.jsd * jensen_shannon(logits, config.aug_splits)
        self.prepared.zero_grad()
        self.accelerator.backward(loss)
        if config.clip_grad:
            self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip_grad)
        self.prepared.step()
        return loss.detach()

    @torch.no_grad()
    def _outputs(self, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Logits, logits before the floor, and labels of each batch, on the CPU."""
        model, raw = self.judged.eval(), RawLogits(self.judged)
        for images, target in loader:
            with self.accelerator.autocast(), raw:
                logits = self.output(model(self.normalise(images)))
            before = logits if raw.last is None else raw.last
            gathered = self.accelerator.gather_for_metrics((logits, before, target))
            yield tuple(tensor.cpu() for tensor in gathered)

    def _check_finite(self, loss: Tensor, run: Run | None, images: Tensor, target: Tensor) -> None:
        """Stop where the loss is not finite; keep the weights as the updates left them, and the last batch."""
        value = loss.item()
        if math.isfinite(value):
            return
        kept = "nothing"
        if run:
            tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
            tensors |= {"data/images": images, "data/target": target}
            kept = str(run.keep_failure(self.epoch, arrays_of(tensors), {"quantities": {"loss": str(value)}}))
        raise FloatingPointError(
            f"loss is {value} in epoch {self.epoch + 1}: the run stops here. Weights and a batch are in {kept}"
        )

    # --- what is built -----------------------------------------------------------------------------------

    def _check_memory(self) -> None:
        """Refuse a batch whose images alone are too much: what a model makes of them is more."""
        size, images = int(self.config.input_size or 0), self.config.batch_size * max(1, self.config.aug_splits)
        what = f"images of {size}×{size} pixels in a batch"
        check_memory(images, PIXEL * size**2, what, "--batch-size or --input-size")

    def _optimiser(self) -> torch.optim.Optimizer:
        config = self.config
        try:
            optimiser = create_optimizer_v2(
                self.model, config.optimiser, config.learning_rate, config.weight_decay, config.momentum
            )
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"optimiser={config.optimiser!r} cannot be built ({brief(error)}): timm.optim.list_optimizers() "
                "names what there is"
            ) from None
        if getattr(optimiser, "is_second_order", False):
            raise ValueError(f"optimiser={config.optimiser!r} needs second derivatives: choose another one")
        return optimiser

    def _loaders(
        self, train: data.Source, test: data.Source
    ) -> tuple[DataLoader[Any], DataLoader[Any], DataLoader[Any] | None]:
        config = self.config
        size, crop = int(config.input_size or 0), float(config.crop or 1)
        images = data.training_set(
            train, size, config.augmentation, auto_augment=config.auto_augment, splits=config.aug_splits
        )
        self.order = torch.Generator()
        options: dict[str, Any] = {
            "batch_size": config.batch_size,
            "num_workers": config.workers,
            "pin_memory": self.accelerator.device.type == "cuda",
        }
        processes = self.accelerator.num_processes
        if len(train.labels) < config.batch_size * processes:
            raise ValueError(
                f"{len(train.labels)} images to train on are fewer than a batch of {config.batch_size} on "
                f"{processes} device(s): choose a smaller batch_size"
            )
        learn: DataLoader[Any] = DataLoader(
            images,
            # Not `generator=`: the loader would seed its workers from it, in every process with the same numbers.
            sampler=RandomSampler(train.labels, generator=self.order),
            drop_last=True,  # a last batch of one upsets batch norm
            collate_fn=data.collate_splits if config.aug_splits else None,
            **options,
        )
        sources = [test]
        if config.ood:
            home = Path(str(config.ood_dir))
            sources.append(data.load(config.ood, home, "test", download=config.download))
        judge = [DataLoader(data.evaluation_set(source, size, crop), **options) for source in sources]
        prepared = [self.accelerator.prepare(loader) for loader in (learn, *judge)]
        return prepared[0], prepared[1], prepared[2] if config.ood else None


def recorded_classes(checkpoint: Checkpoint) -> tuple[str, ...] | None:
    """Names of the classes in the order of the outputs; None where an older version did not write them."""
    names = checkpoint.state.get("classes")
    return names and tuple(names)


def agreed_classes(config: VisionConfig, train: tuple[str, ...], test: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the classes.

    Raises:
        ValueError: Training and test images, or the settings, disagree.
    """
    if train != test:
        odd = sorted(set(train) ^ set(test))[:5]
        raise ValueError(f"{len(train)} classes to train on and {len(test)} to test on: {', '.join(odd)} differ")
    if config.num_classes not in (None, len(train)):
        raise ValueError(
            f"num_classes={config.num_classes}, but {config.dataset} in {config.data_dir} has {len(train)} "
            "classes: leave it out, or choose other data"
        )
    return train


def told(found: dict[str, float]) -> str:
    """An evaluation in a line."""
    aim = f"floor {found['floor']:.2f}" if "floor" in found else "no floor"
    return f"top-1 {100 * found['top1']:.2f} % · entropy {found['realised_entropy']:.3f} ({aim})"
