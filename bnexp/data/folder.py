"""A user's own images, train/CLASS/* and test/CLASS/*, decoded once into a cache that notices changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from bnexp.data.imageset import ImageSet
from bnexp.errors import ConfigError, DataError, StoreError

CACHE_VERSION = 1
SPLITS = ("train", "test")
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"))
GRAY_MODES = frozenset(("1", "L", "LA", "I;16", "I"))


@dataclass(frozen=True)
class _Entry:
    """One image file: its split, the index of its class, and what tells whether it has changed."""

    path: Path
    split: str
    label: int
    stamp: tuple[str, int, int]  # path relative to the root, size in bytes, mtime in ns


def load_folder(root: Path | None, *, image_size: int, cache_dir: Path | None) -> ImageSet:
    """Decode an image folder, or map what was decoded before.

    The short side is resized to `image_size` (bilinear, antialiased) and the centre is cut out. EXIF orientation is
    honoured. Images come out with one channel if every file is grayscale, else with three.

    Raises:
        ConfigError: no root was given.
        DataError: no such folder, a split or class without images, one class only, classes that differ between the
            splits, or a broken image.
        StoreError: the cache cannot be written.
    """
    if root is None:
        raise ConfigError(
            "data.root", got=None, hint="data=folder needs data.root=DIR with DIR/train/CLASS/* and DIR/test/CLASS/*"
        )
    classes, entries = _scan(root)
    manifest = {
        "version": CACHE_VERSION,
        "image_size": image_size,
        "classes": list(classes),
        "files": [list(entry.stamp) for entry in entries],
    }
    base = cache_dir or default_cache_dir()
    key = hashlib.sha256(f"{root.resolve()}\0{image_size}".encode()).hexdigest()[:16]
    folder = base / "folder" / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{key}.lock"):
            cached = _read_cache(folder, manifest)
            if cached is None:
                _write_cache(folder, manifest, entries, image_size)
                cached = _read_cache(folder, manifest)
    except OSError as error:
        raise StoreError(
            f"image cache: cannot use {str(folder)!r} ({error.strerror or error}); set BNEXP_CACHE to another folder"
        ) from error
    assert cached is not None
    images, fingerprint = cached
    labels = {split: np.array([e.label for e in entries if e.split == split], dtype=np.int64) for split in SPLITS}
    return ImageSet(images["train"], labels["train"], images["test"], labels["test"], classes, fingerprint)


def default_cache_dir() -> Path:
    """$BNEXP_CACHE, else bnexp/ in the user's cache folder."""
    if "BNEXP_CACHE" in os.environ:
        return Path(os.environ["BNEXP_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bnexp"


def _scan(root: Path) -> tuple[tuple[str, ...], list[_Entry]]:
    """The class names, and every image in a fixed order: split, class, file name."""
    if not root.is_dir():
        raise DataError(f"data.root: {str(root)!r} is not a folder; expected DIR/train/CLASS/* and DIR/test/CLASS/*")
    names: dict[str, tuple[str, ...]] = {}
    for split in SPLITS:
        if not (root / split).is_dir():
            raise DataError(
                f"data.root: {str(root)!r} has no folder {split!r}; expected DIR/train/CLASS/* and DIR/test/CLASS/*"
            )
        names[split] = tuple(sorted(path.name for path in (root / split).iterdir() if _is_class(path)))
        if not names[split]:
            raise DataError(f"data.root: {str(root / split)!r} is empty; expected a folder for each class")
    if names["train"] != names["test"]:
        only = [
            f"{name!r} is only in {split}"
            for split in SPLITS
            for name in names[split]
            if any(name not in names[s] for s in SPLITS)
        ]
        raise DataError(f"data.root: train and test of {str(root)!r} have different classes: {', '.join(only)}")
    classes = names["train"]
    if len(classes) < 2:
        raise DataError(f"data.root: {str(root)!r} has one class, {classes[0]!r}; a classifier needs two")
    entries = []
    for split in SPLITS:
        for label, name in enumerate(classes):
            found = _images(root, root / split / name)
            if not found:
                raise DataError(
                    f"data.root: {str(root / split / name)!r} has no images ({', '.join(sorted(SUFFIXES))})"
                )
            entries += [_Entry(root / stamp[0], split, label, stamp) for stamp in found]
    return classes, entries


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _images(root: Path, folder: Path) -> list[tuple[str, int, int]]:
    stamps = []
    with os.scandir(folder) as files:
        for file in files:
            if Path(file.name).suffix.lower() in SUFFIXES and not file.name.startswith("."):
                try:
                    stat = file.stat()
                except OSError as error:
                    raise DataError(f"data.root: {file.path!r} cannot be read ({error.strerror})") from error
                stamps.append((str(Path(file.path).relative_to(root)), stat.st_size, stat.st_mtime_ns))
    return sorted(stamps)


def _read_cache(folder: Path, manifest: dict[str, object]) -> tuple[dict[str, np.ndarray], str] | None:
    """The decoded images, mapped from disk so that processes share them, if they were made from these very files."""
    try:
        stored = json.loads((folder / "manifest.json").read_text())
        fingerprint = stored.pop("fingerprint")
        if stored != manifest:
            return None
        return {split: np.load(folder / f"{split}.npy", mmap_mode="r") for split in SPLITS}, fingerprint
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _write_cache(folder: Path, manifest: dict[str, object], entries: Sequence[_Entry], image_size: int) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(lambda entry: _decode(entry.path, image_size), entries)
        decoded = list(tqdm(jobs, total=len(entries), desc="decoding images", unit="image", disable=None))
    gray = all(image.shape[0] == 1 for image, _ in decoded)
    digest = hashlib.sha256()
    for entry, (_, content) in zip(entries, decoded, strict=True):
        digest.update(Path(entry.stamp[0]).as_posix().encode() + b"\0" + content)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for split in SPLITS:
            stack = [image for entry, (image, _) in zip(entries, decoded, strict=True) if entry.split == split]
            array = np.stack([image if gray else np.broadcast_to(image, (3, *image.shape[1:])) for image in stack])
            np.save(temporary / f"{split}.npy", array)
        (temporary / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": digest.hexdigest()}))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decode(path: Path, image_size: int) -> tuple[np.ndarray, bytes]:
    """(C, image_size, image_size) uint8 with C = 1 for a grayscale file, else 3; and the SHA-256 of the file."""
    from PIL import Image, ImageOps

    data = path.read_bytes()
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            gray = image.mode in GRAY_MODES
            if image.mode.startswith("I"):  # 16 bits: PIL would clip them to 8
                image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).astype(np.uint8))
            image = image.convert("L" if gray else "RGB")
            if image.size != (image_size, image_size):
                image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
            array = np.asarray(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"data.root: {str(path)!r} is a broken image ({reason})") from error
    array = array[None] if gray else array.transpose(2, 0, 1)
    return np.ascontiguousarray(array), hashlib.sha256(data).digest()
