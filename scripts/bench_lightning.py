"""`bnexp bench` with a Lightning Trainer in its default settings as a further contender.

pip install lightning
python scripts/bench_lightning.py [SIZE ...] [--repeats N] [--seconds S] [--json]
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
from typing import Any

import torch
from torch import Tensor, nn

from bnexp.bench import main
from bnexp.bench.measure import WARMUP_STEPS
from bnexp.bench.sizes import Size
from bnexp.bench.textbook import LR, MOMENTUM, WEIGHT_DECAY, loader, network
from bnexp.engine.build import HostData


def train(size: Size, host: HostData, device: torch.device, seconds: float) -> float:
    """Images a second of `Trainer.fit` on one run."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.criterion = network(size), nn.CrossEntropyLoss()

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            x, y = batch
            logits = self.model(x)
            loss: Tensor = self.criterion(logits, y)
            self.log("train_loss", loss, prog_bar=True)
            self.log("train_accuracy", (logits.argmax(1) == y).float().mean())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

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
    batches = loader(size, host, host.images.train_images, host.images.train_labels, host.split.train, train=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as quiet:
        quiet.enter_context(warnings.catch_warnings(action="ignore"))
        quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        quiet.enter_context(contextlib.redirect_stderr(io.StringIO()))
        trainer = lightning.Trainer(max_epochs=-1, default_root_dir=folder, callbacks=[clock])
        trainer.fit(Module(), batches)
    return clock.rate


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], {"Lightning's defaults": train}))
