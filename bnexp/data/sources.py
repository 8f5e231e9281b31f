"""The data sets: each becomes uint8 arrays in memory, (N, C, H, W), with integer labels."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from bnexp.data.folder import load_folder
from bnexp.data.imageset import ImageSet
from bnexp.errors import ConfigError, DataError
from bnexp.plugins import load_plugin, plugin_error, plugin_errors, plugin_names, require_signature

# images (1797, 8, 8) in 0..16, labels, and the places of the test images
DIGITS = Path(__file__).with_name("digits.npz")


@dataclass(frozen=True)
class _TorchvisionSource:
    """What differs between torchvision's data sets.

    Attributes:
        files: what must lie below the root, for a reader who has to put it there by hand.
        by_split: whether the constructor takes split="train" and not train=True.
    """

    class_name: str
    files: str
    by_split: bool = False


_IDX = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
TORCHVISION: dict[str, _TorchvisionSource] = {
    "mnist": _TorchvisionSource("MNIST", f"MNIST/raw/{_IDX}"),
    "fashion_mnist": _TorchvisionSource("FashionMNIST", f"FashionMNIST/raw/{_IDX}"),
    "kmnist": _TorchvisionSource("KMNIST", f"KMNIST/raw/{_IDX}"),
    "svhn": _TorchvisionSource("SVHN", "train_32x32.mat and test_32x32.mat", by_split=True),
    "cifar10": _TorchvisionSource("CIFAR10", "cifar-10-batches-py/ or cifar-10-python.tar.gz"),
    "cifar100": _TorchvisionSource("CIFAR100", "cifar-100-python/ or cifar-100-python.tar.gz"),
}


def load_images(
    name: str, *, root: Path | None, image_size: int | None = None, cache_dir: Path | None = None
) -> ImageSet:
    """Read a data set, downloading it where it is one of torchvision's and is not there.

    Args:
        root: where the files lie; not needed for digits.
        image_size: side in pixels that `folder` resizes to, by default 32; the others keep their own.
        cache_dir: where `folder` keeps decoded images, by default $BNEXP_CACHE or the user's cache folder.

    Raises:
        ConfigError: an unknown name, or an option that this data set does not take.
        DataError: files that are missing, broken or inconsistent.
    """
    if name not in DATASETS and name not in plugin_names("data"):
        raise ConfigError("data.name", got=name, choices=sorted((*DATASETS, *plugin_names("data"))))
    if name == "folder":
        return load_folder(root, image_size=image_size or 32, cache_dir=cache_dir)
    if image_size is not None:
        raise ConfigError(
            "data.image_size", got=image_size, hint=f"only data=folder is resized; {name} has its own size"
        )
    return DATASETS[name](root) if name in DATASETS else load_plugin_images(name, root)


def load_plugin_images(name: str, root: Path | None) -> ImageSet:
    """What a user's package gives, checked; its fingerprint is the hash of all of it.

    Raises:
        ConfigError: it raises, or is not (train_images, train_labels, test_images, test_labels) as `plugins`
            describes them.
    """
    source = load_plugin("data", name)
    require_signature("data", name, source, "one argument, the root folder or None", root)
    with plugin_errors("data", name, f"failed on data.root={root}"):
        found = source(root)
    if not isinstance(found, tuple) or len(found) != 4:
        raise plugin_error("data", name, "must give (train_images, train_labels, test_images, test_labels)")
    with plugin_errors("data", name, "gave what is no array"):
        train_images, train_labels, test_images, test_labels = (np.asarray(array) for array in found)
    num_classes = 0
    for split, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3] or not len(images):
            got = f"{images.dtype} {images.shape}"
            raise plugin_error("data", name, f"gave {split} images of {got}; expected uint8 (N, C, H, H)")
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            got = f"{labels.dtype} {labels.shape}"
            raise plugin_error(
                "data", name, f"gave {split} labels of {got}; expected integers from 0, ({len(images)},)"
            )
        num_classes = max(num_classes, int(labels.max()) + 1)
    if train_images.shape[1:] != test_images.shape[1:]:
        shapes = f"{train_images.shape[1:]} and {test_images.shape[1:]}"
        raise plugin_error("data", name, f"gave train and test images of different shapes: {shapes}")
    train_images, test_images = np.ascontiguousarray(train_images), np.ascontiguousarray(test_images)
    train_labels, test_labels = train_labels.astype(np.int64), test_labels.astype(np.int64)
    digest = hashlib.sha256()
    for array in (train_images, train_labels, test_images, test_labels):
        digest.update(hashlib.sha256(array.tobytes()).digest())
    classes = tuple(map(str, range(num_classes)))
    return ImageSet(train_images, train_labels, test_images, test_labels, classes, digest.hexdigest())


def load_digits(root: Path | None = None) -> ImageSet:
    """UCI's optical digits, as scikit-learn has them: 1,797 8×8 images of 17 gray levels, scaled to 0..255.

    They come without a test split: a stratified fifth, 360 images, is fixed once and for all as the test set, by
    scikit-learn's `train_test_split(test_size=0.2, random_state=0, stratify=labels)`.

    Source: Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (CC BY).
    """
    with np.load(DIGITS) as raw:
        images = np.rint(raw["images"] * (255 / 16)).astype(np.uint8)[:, None]
        labels, test = raw["labels"].astype(np.int64), raw["test"]
    train = np.setdiff1d(np.arange(len(labels)), test)
    return ImageSet(images[train], labels[train], images[test], labels[test], tuple("0123456789"))


def load_torchvision(name: str, root: Path | None) -> ImageSet:
    """One of torchvision's data sets, read from `root` or downloaded to it with its checksums.

    Raises:
        DataError: it is not there and cannot be downloaded, or a file is broken; says what to put where.
    """
    import torchvision.datasets

    source = TORCHVISION[name]
    if root is None:
        raise ConfigError("data.root", got=None, hint=f"{name} needs the folder that its files lie in")
    constructor = getattr(torchvision.datasets, source.class_name)
    train = _open(constructor, root, source, name, train=True)
    test = _open(constructor, root, source, name, train=False)
    train_images, train_labels = _arrays(train)
    test_images, test_labels = _arrays(test)
    classes = getattr(train, "classes", None) or [str(label) for label in range(int(train_labels.max()) + 1)]
    return ImageSet(train_images, train_labels, test_images, test_labels, tuple(classes))


def _open(constructor: Callable[..., Any], root: Path, source: _TorchvisionSource, name: str, *, train: bool) -> Any:
    split: dict[str, Any] = {"split": "train" if train else "test"} if source.by_split else {"train": train}
    wanted = f"put {source.files} into {str(root)!r}, or set data.root to the folder that has it"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            try:
                return constructor(str(root), download=False, **split)
            except (RuntimeError, FileNotFoundError):  # not there, or not whole
                pass
            with _download_lock(root, name):
                return constructor(str(root), download=True, **split)
        except OSError as error:  # URLError and its like included
            raise DataError(
                f"data={name}: not found in {str(root)!r} and not downloaded ({_why(error)}); {wanted}"
            ) from error
        except (RuntimeError, ValueError, EOFError, KeyError) as error:
            raise DataError(f"data={name}: broken files in {str(root)!r} ({_why(error)}); {wanted}") from error


@contextmanager
def _download_lock(root: Path, name: str) -> Iterator[None]:
    """One process downloads, the others wait and then find the files."""
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        yield


def _why(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """torchvision's own storage, (N, H, W), (N, H, W, C) or (N, C, H, W), as (N, C, H, W), with int64 labels."""
    images = np.asarray(dataset.data)
    labels = np.asarray(dataset.targets if hasattr(dataset, "targets") else dataset.labels, dtype=np.int64)
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] == 3:
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images, dtype=np.uint8), labels


def _torchvision_loader(name: str) -> Callable[[Path | None], ImageSet]:
    return lambda root: load_torchvision(name, root)


DATASETS: dict[str, Callable[[Path | None], ImageSet]] = {
    "digits": load_digits,
    **{name: _torchvision_loader(name) for name in TORCHVISION},
    "folder": lambda root: load_folder(root, image_size=32, cache_dir=None),
}
