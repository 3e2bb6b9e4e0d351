"""Trainer of image classifiers.

timm has the models, augmentation, optimisers, schedules and averages of weights; `accelerate` the devices, the
precision and the processes. A step of the run is an epoch. All random numbers of an epoch follow from the seed and
the number of the epoch, so a resumed run is the same as one that was not interrupted.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain

import numpy as np
import torch
from accelerate import Accelerator
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from entropyfloor.extras import brief, out_of_memory_hint
from entropyfloor.runs import Checkpoint, Run
from entropyfloor.runs.checkpoint import run_directory
from entropyfloor.runs.loop import Loop, check_finite, resume_command, training_loop
from entropyfloor.runs.machine import check_memory
from entropyfloor.runs.progress import Progress
from entropyfloor.torch.checkpoint import arrays_of, pack, tensors_below, unpack_optimiser
from entropyfloor.torch.seeding import derived, seed
from entropyfloor.vision import metrics, sources
from entropyfloor.vision.classifier import Classifier
from entropyfloor.vision.config import VisionConfig
from entropyfloor.vision.data import Splits, training_loader
from entropyfloor.vision.load import label_names
from entropyfloor.vision.model import build_model, check_size, load_weights
from entropyfloor.vision.predict import OUT_OF_MEMORY_HINT, evaluation_loaders, predict
from entropyfloor.vision.regularisers import classification_loss, jensen_shannon

INIT, EPOCH, ORDER = range(3)
"""Streams of random numbers."""
MANY = 10_000
"""Number of images whose check takes so long that its progress is shown."""
PIXEL_BYTES = 3 * 5
"""Bytes of a pixel of three channels as it is loaded and as a float32."""
CHECK_EVERY = 50
"""Number of updates between checks of the loss, each of which waits for the device."""


class Trainer:
    """Trainer of image classifiers.

    Args:
        config: Resolved settings, with `num_classes`.
        images: Datasets of the run.
        accelerator: Device, precision and processes.

    Raises:
        ValueError: timm has no such model, optimiser or policy; the floor is out of reach; the initial weights do
            not fit; a batch is too large for the memory or the dataset, or too small for batch norm.
    """

    def __init__(self, config: VisionConfig, images: Splits, accelerator: Accelerator) -> None:
        self.config, self.accelerator, self.images = config, accelerator, images
        self.classes, self.epoch = images.train.classes, 0
        device = accelerator.device
        self._check_batch()
        self.order = torch.Generator()
        self.train_loader = accelerator.prepare(training_loader(images.train, config, device, self.order))
        self.test_loader, self.ood_loader = evaluation_loaders(images.test, images.ood, config, accelerator)
        seed(config.seed, INIT)
        self.model, output = build_model(config, self.classes)
        self.optimiser = self._optimiser()
        self.updates_per_epoch = len(self.train_loader)
        self.scheduler, _ = create_scheduler_v2(
            self.optimiser,
            # Old versions of timm have no constant schedule; a step schedule without decay is one.
            "step" if config.schedule == "constant" else config.schedule,
            decay_rate=1.0,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            warmup_lr=min(1e-5, config.learning_rate),  # timm's, unless it would fall from there
            step_on_epochs=False,
            updates_per_epoch=self.updates_per_epoch,
        )
        with out_of_memory_hint(OUT_OF_MEMORY_HINT):
            check_size(self.model.to(device), config, device)
        self.average = ModelEmaV3(self.model, config.ema, use_warmup=True) if config.ema else None
        evaluated = self.average.module if self.average else self.model
        self.classifier = Classifier(evaluated, output, config, self.classes).to(device)
        learner: nn.Module = torch.compile(self.model) if config.compile else self.model  # type: ignore[assignment]
        self.learner, self.prepared = accelerator.prepare(learner, self.optimiser)
        self.mixup = None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=0.0, num_classes=len(self.classes))
        mode, splits = config.erase_mode, config.aug_splits
        self.erase = RandomErasing(config.erase, mode=mode, num_splits=splits, device=device)

    def fit(self, run: Run | None) -> None:
        """Train to the end, with an evaluation before the first epoch and after each one.

        After Ctrl-C or SIGTERM the epoch is finished, evaluated and saved; a second signal stops at once.

        Args:
            run: Run directory; None in processes that write nothing.
        """
        config = self.config
        frame = training_loop(
            [run] if run else [],
            total=config.epochs * self.updates_per_epoch,
            domain="vision",
            seed=config.seed,
            processes=self.accelerator.num_processes,
            unit="updates",
            bar=self.accelerator.is_main_process,
            track=config.track,
        )
        with frame as loop, out_of_memory_hint(OUT_OF_MEMORY_HINT):
            if self.epoch == 0:  # also to find unreadable images before training
                self._evaluate({}, run, loop.progress)
                self._check_images(loop.progress)
            stopping = self._stopping(loop)
            while self.epoch < config.epochs and not stopping:
                with _ended_workers(loop):
                    learned = self._train_epoch(run, loop.progress)
                    self.epoch += 1
                    self._evaluate(learned, run, loop.progress)
                stopping = self._stopping(loop)
                if run and (stopping or self.epoch == config.epochs or self.epoch % config.checkpoint_every == 0):
                    self.save(run)
            self.accelerator.wait_for_everyone()  # launchers stop all processes when the first one has stopped

    def _stopping(self, loop: Loop) -> bool:
        """Whether a signal has reached any of the processes, which stop together."""
        asked = torch.tensor(float(loop.stopping), device=self.accelerator.device)
        if self.accelerator.reduce(asked).item():
            loop.stop()
        return loop.stopping

    def save(self, run: Run) -> None:
        """Write a checkpoint with everything that `restore` needs."""
        tensors = self._weights()
        scaler = self.accelerator.scaler
        state = {
            "optimiser": pack(self.optimiser.state_dict(), "optimiser", tensors),
            "scaler": scaler.state_dict() if scaler else None,
            "data": self._labels_checksum(),
            "classes": list(self.classes),
            "processes": self.accelerator.num_processes,
        }
        run.save(self.epoch, arrays_of(tensors), state)

    def check_data(self, checkpoint: Checkpoint) -> None:
        """Refuse to continue with other images than those of the run, or in another number of processes.

        Raises:
            ValueError: The classes have other names or another order, the images have other labels, or batches
                would be divided otherwise.
        """
        names, home = label_names(checkpoint) or self.classes, self.config.data_dir
        if difference := sources.difference(names, self.classes):
            raise ValueError(f"the classes in data_dir={home} are not those of the run: {difference}")
        labels = self._labels_checksum()
        if checkpoint.state.get("data", labels) != labels:
            raise ValueError(f"the images in data_dir={home} are not those that the run began with")
        now, before = self.accelerator.num_processes, checkpoint.state.get("processes")
        if before not in (None, now):  # earlier versions did not save it
            command = resume_command(run_directory(checkpoint.path), "vision", before)
            raise ValueError(f"{now} process(es) cannot continue a run of {before}: continue with {command}")

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of a run with the same settings.

        Raises:
            ValueError: It is a checkpoint of another model.
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
        source, processes = self.images.train, self.accelerator.num_processes
        if isinstance(source.store, sources.Arrays):
            return
        faults = sources.Faults(source)
        own = range(self.accelerator.process_index, len(faults), processes)
        loader = DataLoader(Subset(faults, own), 32, num_workers=self.config.workers, collate_fn=list)
        messages, begun = {}, time.perf_counter()
        for done, (i, message) in enumerate(zip(own, chain.from_iterable(loader), strict=True)):
            if message:
                messages[i] = message
            if self.accelerator.is_main_process and len(faults) >= MANY and done % 1000 == 0:
                left = (len(own) - done) * (time.perf_counter() - begun) / max(done, 1)
                detail = f", {timedelta(seconds=round(left))} left" if done else ""
                progress.busy(0, f"checking that all {len(faults):,} training images can be read", detail)
        if messages:
            first, *others = messages
            names = sources.listed([source.store.name(i) for i in others])
            raise sources.UnreadableImageError(messages[first] + (f"; nor can {names}" if others else ""))

    def _evaluate(self, learned: dict[str, float], run: Run | None, progress: Progress) -> None:
        """Evaluate, and log the results together with what the epoch has logged."""
        try:
            predictions = predict(self.classifier, self.accelerator, self.test_loader, self.ood_loader)
            results = metrics.summarise(*predictions) | self.config.floor_metric | learned
        except ValueError:  # an image that cannot be read, or logits that are NaN
            if run and self.epoch > 0:  # they would fail again: a resume continues after them
                run.log(self.epoch, {"top1": math.nan})
                self.save(run)
            raise
        if run:
            run.log(self.epoch, results)
            progress.report(self.epoch * self.updates_per_epoch, summary(results))

    def _train_epoch(self, run: Run | None, progress: Progress) -> dict[str, float]:
        """Train on each image once; returns mean loss and accuracy on the way, the speed and the learning rate."""
        seed(self.config.seed, EPOCH, self.epoch, self.accelerator.process_index)
        self.order.manual_seed(derived(self.config.seed, ORDER, self.epoch))  # the same in every process
        self.learner.train()
        total, right = torch.zeros((2,), device=self.accelerator.device)
        count, begun = 0, time.perf_counter()
        for i, (images, target) in enumerate(self.train_loader):
            update = self.epoch * self.updates_per_epoch + i
            self.scheduler.step_update(update)
            loss, accuracy = self._update(images, target)
            if self.average:
                self.average.update(self.model, step=update + 1)
            total, right = total + loss, right + accuracy
            count += len(target) // max(1, self.config.aug_splits)
            progress.advance(update + 1)
            if i % CHECK_EVERY == 0 or i + 1 == self.updates_per_epoch:
                self._check_finite(total / (i + 1), run, {"data/images": images, "data/target": target})
        if self.accelerator.num_processes > 1:
            for model in filter(None, (self.model, self.average)):
                distribute_bn(model, self.accelerator.num_processes, reduce=True)
        rate = count * self.accelerator.num_processes / (time.perf_counter() - begun)
        sums = torch.stack([total, right]) / self.updates_per_epoch
        mean, top1 = self.accelerator.reduce(sums, "mean").tolist()
        learned = {"loss": mean} if self.mixup else {"loss": mean, "train/top1": top1}
        return learned | {"images_per_second": rate, "learning_rate": self.optimiser.param_groups[0]["lr"]}

    def _update(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Update the model with a batch of bytes and labels; returns the loss, and the share of right predictions.

        With Mixup, whose targets are mixtures, the largest part of each counts as right.
        """
        config = self.config
        images = self.classifier.normalise(images)
        if config.erase:
            images = self.erase(images)
        if self.mixup:
            images, target = self.mixup(images, target)
        if config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.accelerator.autocast():
            logits = self.classifier.output(self.learner(images))
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
        wanted = target if target.ndim == 1 else target.argmax(-1)
        return loss.detach(), (logits.detach().argmax(-1) == wanted).float().mean()

    def _check_finite(self, loss: Tensor, run: Run | None, batch: dict[str, Tensor]) -> None:
        """Stop if the mean loss is not finite; the run keeps the weights and the last batch."""
        check_finite({"loss": loss.item()}, self.epoch + 1, run, lambda: arrays_of(self._weights() | batch))

    # --- helpers -----------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, Tensor]:
        """The weights and their average by their names in a checkpoint."""
        tensors = {f"model/{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average:
            tensors |= {f"average/{name}": tensor for name, tensor in self.average.module.state_dict().items()}
        return tensors

    def _labels_checksum(self) -> int:
        """Checksum of all labels, by which a resume recognises the images."""
        labels = np.array([*self.images.train.labels, -1, *self.images.test.labels], np.int64)
        return zlib.crc32(labels.tobytes())

    def _check_batch(self) -> None:
        """Refuse a batch that the memory cannot hold, or that the training images do not fill."""
        config, size, processes = self.config, int(self.config.input_size or 0), self.accelerator.num_processes
        what = f"images of {size}×{size} pixels in a batch"
        images_per_update = config.batch_size * max(1, config.aug_splits)
        check_memory(images_per_update, PIXEL_BYTES * size**2, what, "--batch-size or --input-size")
        images = len(self.images.train.labels)
        if images < config.batch_size * processes:
            raise ValueError(
                f"{images} images to train on are fewer than a batch of {config.batch_size} on "
                f"{processes} device(s): choose a smaller batch_size"
            )

    def _optimiser(self) -> torch.optim.Optimizer:
        config = self.config
        try:
            optimiser = create_optimizer_v2(
                self.model, config.optimiser, config.learning_rate, config.weight_decay, config.momentum
            )
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"optimiser={config.optimiser!r} cannot be built ({brief(error)}): timm.optim.list_optimizers() "
                "lists timm's optimisers"
            ) from None
        if getattr(optimiser, "is_second_order", False):
            raise ValueError(f"optimiser={config.optimiser!r} needs second derivatives: choose another one")
        try:  # before the first save: a dtype in it is that of moments which a resume would turn into float32
            json.dumps(pack(optimiser.state_dict(), "optimiser", {}))
        except TypeError as error:
            raise ValueError(
                f"the state of optimiser={config.optimiser!r} cannot be saved ({error}): choose another one"
            ) from None
        return optimiser


@contextmanager
def _ended_workers(loop: Loop) -> Iterator[None]:
    """Stop at once if the signal to stop has also ended the processes that prepare images, as Slurm's does."""
    try:
        yield
    except RuntimeError as error:
        if loop.stopping and "DataLoader worker" in str(error):
            raise KeyboardInterrupt from None
        raise


def summary(results: dict[str, float]) -> str:
    """The results of an evaluation in a line."""
    floor = f"floor {results['floor']:.2f}" if "floor" in results else "no floor"
    return f"top-1 {100 * results['top1']:.2f} % · entropy {results['realised_entropy']:.3f} ({floor})"
