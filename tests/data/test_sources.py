"""Data sets: the embedded one, torchvision's from files in the true format, and image folders."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bnexp import config as tables
from bnexp.data import DATASETS, folder, load_images
from bnexp.data.folder import load_folder
from bnexp.errors import ConfigError, DataError, StoreError

REAL = Path(os.environ.get("BNEXP_TEST_DATA", "/nonexistent"))
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="BNEXP_TEST_DATA names no folder with the real images")


def test_table_agrees_with_the_configs() -> None:
    assert set(DATASETS) == set(tables.DATASETS)


def test_digits_are_scikit_learns_and_split_for_good() -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images = load_images("digits", root=None)
    assert images.train_images.shape == (1437, 1, 8, 8)
    assert images.test_images.shape == (360, 1, 8, 8)
    assert images.train_images.dtype == np.uint8
    raw = {
        image.tobytes(): label
        for image, label in zip(load_digits().images.astype(np.uint8), load_digits().target, strict=True)
    }
    for split_images, labels in ((images.train_images, images.train_labels), (images.test_images, images.test_labels)):
        restored = np.rint(split_images[:, 0] * (16 / 255)).astype(np.uint8)
        assert all(raw[image.tobytes()] == label for image, label in zip(restored, labels, strict=True))
    train, test = train_test_split(np.arange(1797), test_size=0.2, random_state=0, stratify=load_digits().target)
    for places, split_images in ((train, images.train_images), (test, images.test_images)):
        expected = np.rint(load_digits().images[np.sort(places)] * (255 / 16)).astype(np.uint8)
        np.testing.assert_array_equal(split_images[:, 0], expected)
    # pinned: results are only comparable while this split stays what it is
    assert hashlib.sha256(images.test_images.tobytes()).hexdigest()[:16] == "de85aee14a9506dd"


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize(
    ("name", "directory"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_idx_files_that_are_there_are_read(name: str, directory: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {"train": rng.integers(0, 256, (12, 28, 28)), "t10k": rng.integers(0, 256, (4, 28, 28))}
    for split, array in images.items():
        write_idx(tmp_path / directory / "raw" / f"{split}-images-idx3-ubyte", array)
        write_idx(tmp_path / directory / "raw" / f"{split}-labels-idx1-ubyte", np.arange(len(array)) % 10)
    loaded = load_images(name, root=tmp_path)
    np.testing.assert_array_equal(loaded.train_images[:, 0], images["train"])
    np.testing.assert_array_equal(loaded.test_images[:, 0], images["t10k"])
    assert loaded.train_labels.tolist() == [k % 10 for k in range(12)]
    assert loaded.num_classes == 10


@pytest.mark.parametrize(("name", "coarse"), [("cifar10", False), ("cifar100", True)])
def test_cifar_batches_are_read_channels_first(
    name: str, coarse: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    cls = torchvision.datasets.CIFAR100 if coarse else torchvision.datasets.CIFAR10
    base, key = tmp_path / cls.base_folder, "fine_labels" if coarse else "labels"
    base.mkdir()
    rng = np.random.default_rng(0)

    def write(file: str, count: int) -> tuple[np.ndarray, str]:
        pixels = rng.integers(0, 256, (count, 3072)).astype(np.uint8)
        (base / file).write_bytes(pickle.dumps({"data": pixels, key: [k % 10 for k in range(count)]}))
        return pixels, hashlib.md5((base / file).read_bytes()).hexdigest()

    train, train_md5 = write("train_file", 6)
    test, test_md5 = write("test_file", 2)
    meta = {cls.meta["key"]: [f"class {k}" for k in range(10)]}
    (base / cls.meta["filename"]).write_bytes(pickle.dumps(meta))
    meta_md5 = hashlib.md5((base / cls.meta["filename"]).read_bytes()).hexdigest()
    monkeypatch.setattr(cls, "train_list", [["train_file", train_md5]])
    monkeypatch.setattr(cls, "test_list", [["test_file", test_md5]])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": meta_md5})
    loaded = load_images(name, root=tmp_path)
    np.testing.assert_array_equal(loaded.train_images, train.reshape(6, 3, 32, 32))
    np.testing.assert_array_equal(loaded.test_images, test.reshape(2, 3, 32, 32))
    assert loaded.classes[3] == "class 3"


def test_svhn_matlab_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.datasets
    from scipy.io import savemat

    rng = np.random.default_rng(0)
    pixels, entries = {}, {}
    for split, count in (("train", 5), ("test", 3)):
        pixels[split] = rng.integers(0, 256, (32, 32, 3, count)).astype(np.uint8)
        path = tmp_path / f"{split}_32x32.mat"
        savemat(path, {"X": pixels[split], "y": np.array([[10], [1], [2], [3], [4]][:count])})
        entries[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", entries)
    loaded = load_images("svhn", root=tmp_path)
    np.testing.assert_array_equal(loaded.train_images, pixels["train"].transpose(3, 2, 0, 1))
    assert loaded.train_labels.tolist() == [0, 1, 2, 3, 4]  # SVHN writes the digit 0 as 10


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"digits", "folder"}))
def test_offline_says_in_one_line_what_to_put_where(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request
    from urllib.error import URLError

    def no_network(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    with pytest.raises(DataError, match=rf"data={name}: .*put .* into .*data\.root") as error:
        load_images(name, root=tmp_path / "data")
    assert "\n" not in str(error.value)


def test_truncated_mnist_is_one_line(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    for split in ("train", "t10k"):
        write_idx(raw / f"{split}-images-idx3-ubyte", np.zeros((4, 28, 28)))
        write_idx(raw / f"{split}-labels-idx1-ubyte", np.zeros(4))
    (raw / "train-images-idx3-ubyte").write_bytes((raw / "train-images-idx3-ubyte").read_bytes()[:100])
    with pytest.raises(DataError, match="data=mnist: broken files"):
        load_images("mnist", root=tmp_path)


def test_other_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.image_size"):
        load_images("digits", root=None, image_size=16)
    with pytest.raises(ConfigError, match=r"data\.root"):
        load_images("mnist", root=None)
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        load_images("mnits", root=None)


# --- image folders


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(root: Path, cache: Path, size: int = 8) -> Any:
    return load_folder(root, image_size=size, cache_dir=cache)


def test_folder_is_decoded_once_and_mapped_after(
    image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(image_folder, cache)
    assert first.train_images.shape == (24, 3, 8, 8)
    assert first.test_images.shape == (8, 3, 8, 8)
    assert first.classes == ("bright", "dark")
    assert first.train_images[first.train_labels == 0].mean() > 150 > first.train_images[first.train_labels == 1].mean()

    def must_not_decode(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder, "_decode", must_not_decode)
    second = load(image_folder, cache)
    assert isinstance(second.train_images, np.memmap)
    np.testing.assert_array_equal(first.train_images, second.train_images)
    assert second.fingerprint == first.fingerprint


@pytest.mark.parametrize("change", ["content", "added", "removed"])
def test_folder_cache_notices_a_change(image_folder: Path, cache: Path, change: str) -> None:
    before = load(image_folder, cache)
    file = image_folder / "train" / "dark" / "0.png"
    if change == "content":
        Image.new("RGB", (12, 10), (250, 0, 0)).save(file)
    elif change == "added":
        Image.new("RGB", (12, 10), (250, 0, 0)).save(file.with_name("new.png"))
    else:
        file.unlink()
    after = load(image_folder, cache)
    assert after.fingerprint != before.fingerprint
    assert len(after.train_images) == len(before.train_images) + {"content": 0, "added": 1, "removed": -1}[change]
    assert (after.train_images[:, 0].max() > 235) == (change != "removed")


def test_folder_fingerprint_is_of_the_content_and_not_of_the_place(
    image_folder: Path, cache: Path, tmp_path: Path
) -> None:
    here = load(image_folder, cache)
    moved = tmp_path / "elsewhere"
    image_folder.rename(moved)
    assert load(moved, cache).fingerprint == here.fingerprint
    assert load(moved, cache, size=16).fingerprint == here.fingerprint


def test_folder_resizes_the_short_side_and_cuts_the_centre(tmp_path: Path, cache: Path) -> None:
    pixels = np.zeros((20, 60, 3), dtype=np.uint8)
    pixels[:, 20:40] = 255  # only the central square is white
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "wide" / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / "wide" / split / name / "x.png")
    images = load(tmp_path / "wide", cache, size=10).train_images
    assert images.shape == (2, 3, 10, 10)
    assert images[:, :, :, 2:-2].min() == 255


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("I;16", 1), ("P", 3), ("RGBA", 3), ("CMYK", 3)])
def test_folder_takes_any_mode(tmp_path: Path, cache: Path, mode: str, channels: int) -> None:
    suffix = "tif" if mode in ("I;16", "CMYK") else "png"
    for split in ("train", "test"):
        for name, level in (("a", 64), ("b", 192)):
            (tmp_path / "f" / split / name).mkdir(parents=True)
            gray = np.full((8, 8), level, dtype=np.uint8)
            image = (
                Image.fromarray(gray.astype(np.uint16) * 256) if mode == "I;16" else Image.fromarray(gray).convert(mode)
            )
            image.save(tmp_path / "f" / split / name / f"x.{suffix}")
    loaded = load(tmp_path / "f", cache)
    assert loaded.in_channels == channels
    if mode != "1":
        np.testing.assert_allclose(loaded.train_images[0].astype(int), 64, atol=3)


def test_two_loads_at_once_decode_once(image_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = folder._decode
    monkeypatch.setattr(folder, "_decode", lambda *a: (calls.append(1), real(*a))[1])
    threads = [threading.Thread(target=load, args=(image_folder, cache)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 32


def spoil(root: Path, how: str) -> Path:
    import shutil

    if how == "missing":
        return root / "nowhere"
    if how == "no test":
        shutil.rmtree(root / "test")
    if how == "empty":
        for split in ("train", "test"):
            shutil.rmtree(root / split)
            (root / split).mkdir()
    if how == "one class":
        shutil.rmtree(root / "train" / "dark")
        shutil.rmtree(root / "test" / "dark")
    if how == "no images":
        for file in (root / "test" / "dark").iterdir():
            file.rename(file.with_suffix(".txt"))
    if how == "broken":
        picture = root / "train" / "dark" / "broken.jpg"
        Image.new("RGB", (64, 64)).save(picture)
        picture.write_bytes(picture.read_bytes()[:200])
    if how == "differ":
        (root / "train" / "dark").rename(root / "train" / "drak")
    return root


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "is not a folder"),
        ("no test", "has no folder 'test'"),
        ("empty", "is empty"),
        ("one class", "has one class, 'bright'"),
        ("no images", "test/dark' has no images"),
        ("broken", r"broken\.jpg' is a broken image"),
        ("differ", "different classes: 'drak' is only in train, 'dark' is only in test"),
    ],
)
def test_folder_mistakes_are_one_line(image_folder: Path, cache: Path, how: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        load(spoil(image_folder, how), cache)
    assert "\n" not in str(error.value)


def test_folder_without_root_and_with_an_unusable_cache(image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.root"):
        load_folder(None, image_size=8, cache_dir=None)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="BNEXP_CACHE"):
        load(image_folder, tmp_path / "file")


# --- the real images


@needs_real
def test_real_mnist_is_whole() -> None:
    images = load_images("mnist", root=REAL)
    assert (images.train_images.shape, images.test_images.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    assert images.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert images.train_images.mean() / 255 == pytest.approx(0.1307, abs=1e-4)  # the well-known constant


@needs_real
@pytest.mark.slow
def test_real_cifar_folder_decodes_and_is_cached(tmp_path: Path) -> None:
    images = load_folder(REAL / "cifar10-jpeg", image_size=32, cache_dir=tmp_path)
    assert (images.train_images.shape, images.test_images.shape) == ((50000, 3, 32, 32), (10000, 3, 32, 32))
    assert images.num_classes == 10
    assert images.train_images.mean((0, 2, 3)) / 255 == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)


@needs_real
@pytest.mark.slow
def test_real_mnist_trains_to_what_a_small_cnn_reaches(tmp_path: Path) -> None:
    from bnexp.compose import request_from_argv
    from bnexp.runner import train
    from bnexp.store import Store

    argv = ["data=mnist", f"data.root={REAL}", "model=cnn", "norm=batch", "epochs=3", f"results={tmp_path}"]
    assert train(request_from_argv(argv)) == 0
    (record,) = Store(tmp_path).records()
    assert (record.final["test_accuracy"] or 0) > 0.98
