"""`bnexp bench` with a Lightning Trainer in its default settings as a further contender.

pip install lightning
python scripts/bench_lightning.py [SIZE ...] [--repeats N] [--seconds S] [--command] [--json]
python scripts/bench_lightning.py sweep SIZE RUNS EPOCHS     # run after run, evaluated after each epoch
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bnexp.bench import main
from bnexp.bench.measure import WARMUP_STEPS
from bnexp.bench.networks import network
from bnexp.bench.sizes import SIZES, Size
from bnexp.bench.textbook import LR, MOMENTUM, WEIGHT_DECAY, loader
from bnexp.engine.build import HostData


def module(size: Size) -> Any:
    """The network as a LightningModule."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.criterion = network(size), nn.CrossEntropyLoss()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return self._step(batch, "train")

        def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
            self._step(batch, "val")

        def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
            self._step(batch, "test")

        def _step(self, batch: tuple[Tensor, Tensor], split: str) -> Tensor:
            x, y = batch
            logits = self.model(x)
            loss: Tensor = self.criterion(logits, y)
            self.log(f"{split}_loss", loss, prog_bar=True)
            self.log(f"{split}_accuracy", (logits.argmax(1) == y).float().mean())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    return Module()


def train(size: Size, host: HostData, device: torch.device, seconds: float) -> float:
    """Images a second of `Trainer.fit` on one run."""
    import lightning

    class Clock(lightning.Callback):
        steps, started, rate = 0, math.inf, 0.0

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.steps += 1
            if self.steps == WARMUP_STEPS:
                self.started = time.perf_counter()
            if time.perf_counter() - self.started > seconds:
                self.rate = (self.steps - WARMUP_STEPS) * size.batch_size / (time.perf_counter() - self.started)
                trainer.should_stop = True

    clock = Clock()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(max_epochs=-1, default_root_dir=folder, callbacks=[clock])
        trainer.fit(module(size), loaders(size, host)[0])
    return clock.rate


def sweep(name: str, num_runs: str, epochs: str) -> None:
    """Train run after run, with validation after each epoch and a test at the end, as Lightning has it by default."""
    import lightning

    size = SIZES[name]
    training, validation, test = loaders(size, size.host())
    for seed in range(int(num_runs)):
        with quiet(), tempfile.TemporaryDirectory() as folder:
            lightning.seed_everything(seed)
            trainer = lightning.Trainer(max_epochs=int(epochs), default_root_dir=folder)
            model = module(size)
            trainer.fit(model, training, validation)
            trainer.test(model, test)


def loaders(size: Size, host: HostData) -> list[Any]:
    """Those of training, validation and test."""
    images, split = host.images, host.split
    everything = np.arange(len(images.test_labels))
    return [
        loader(size, host, images.train_images, images.train_labels, split.train, train=True),
        loader(size, host, images.train_images, images.train_labels, split.val, train=False),
        loader(size, host, images.test_images, images.test_labels, everything, train=False),
    ]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Next to nothing of Lightning on the screen."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    nothing = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    if sys.argv[1:2] == ["sweep"]:
        sweep(*sys.argv[2:])
        sys.exit()
    command = [sys.executable, __file__, "sweep"]
    sys.exit(main(sys.argv[1:], {"Lightning's defaults": train}, {"Lightning's defaults": command}))
