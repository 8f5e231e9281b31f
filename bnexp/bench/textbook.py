"""The loop that tutorials teach: PIL images, torchvision's transforms, DataLoader, fp32, `.item()` in every step.

Nothing of bnexp is in the loop; the network is that of `bnexp train`, made of torch.nn's own layers.

    python -m bnexp.bench.textbook SIZE RUNS EPOCHS     # a sweep: run after run, evaluated after each epoch
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bnexp.bench.networks import network
from bnexp.bench.sizes import SIZES, Size
from bnexp.engine.build import HostData

LR, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4


class ArrayImages(Dataset[tuple[Tensor, int]]):
    """Images in memory, handed out one by one as PIL images, as torchvision's MNIST and CIFAR10 hand them out.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,).
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Callable[[Any], Tensor]) -> None:
        self.transform = transform
        self.data = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        self.targets = labels.tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.data[index]
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(image), self.targets[index]

    def __len__(self) -> int:
        return len(self.targets)


def train(
    size: Size, host: HostData, device: torch.device, *, epochs: int, seed: int = 0, evaluate: bool = True
) -> Iterator[int]:
    """Train one network; yields the images of each step once it is done.

    Args:
        evaluate: on validation after each epoch and on test at the end, and print it.
    """
    torch.manual_seed(seed)
    images, split = host.images, host.split
    training = loader(size, host, images.train_images, images.train_labels, split.train, train=True)
    validation = loader(size, host, images.train_images, images.train_labels, split.val, train=False)
    model = network(size).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    criterion = nn.CrossEntropyLoss()
    for epoch in range(epochs):
        model.train()
        loss_sum, num_correct = 0.0, 0
        for x, y in training:
            x, y = x.to(device), y.to(device)
            optimizer.zero_grad()
            logits = model(x)
            loss = criterion(logits, y)
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
            num_correct += (logits.argmax(1) == y).sum().item()
            yield len(y)
        if evaluate:
            val = _accuracy(model, validation, device)
            print(f"epoch {epoch}: loss {loss_sum / len(training):.4f}, accuracy on validation {val:.4f}")
    if not evaluate:
        return
    everything = np.arange(len(images.test_labels))
    test = loader(size, host, images.test_images, images.test_labels, everything, train=False)
    print(f"test {_accuracy(model, test, device):.4f}")


def loader(
    size: Size, host: HostData, images: np.ndarray, labels: np.ndarray, index: np.ndarray, *, train: bool
) -> DataLoader[Any]:
    """Batches of the images at these places, normalized; in a new order each epoch where they are trained on."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(host.mean.tolist(), host.std.tolist())])
    data = ArrayImages(images[index], labels[index], transform)
    return DataLoader(data, batch_size=size.batch_size, shuffle=train, drop_last=train)


@torch.no_grad()
def _accuracy(model: nn.Module, batches: DataLoader[Any], device: torch.device) -> float:
    model.eval()
    num_correct, num = 0, 0
    for x, y in batches:
        num_correct += int((model(x.to(device)).argmax(1) == y.to(device)).sum().item())
        num += len(y)
    return num_correct / num


def main(argv: list[str]) -> None:
    name, num_runs, epochs = argv
    size = SIZES[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    host = size.host()
    for seed in range(int(num_runs)):
        for _ in train(size, host, device, epochs=int(epochs), seed=seed):
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
