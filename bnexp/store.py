"""The results folder: where each thing lies, written atomically, read back."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bnexp.errors import StoreError
from bnexp.ledger import Ledger, appending, read_ledger, study_digest, study_event
from bnexp.records import Predictions, RunRecord

# what numpy.load raises of a file that is no archive of arrays, or not a whole one
UNREADABLE = (
    OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, NotImplementedError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip

RECORD, HISTORY, PROBES, PREDICTIONS = "record.json", "history.jsonl", "probes.jsonl", "predictions.npz"
READ_BY_REPORTS = (RECORD, HISTORY, PROBES, PREDICTIONS)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` with `content` in one step that survives a crash: the old file or the new one, never half."""
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())  # mkstemp makes it private; a results folder may be shared
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _read_rows(path: Path, needle: str = "") -> list[dict[str, Any]]:
    """The JSON lines, up to one that is not whole, that have this text in them."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in (line for line in lines if needle in line):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_json(path: Path) -> Any:
    """The JSON document at `path`.

    Raises:
        StoreError: it is not JSON, with its path.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise StoreError(f"{path}: not a JSON document ({error})") from error


def _attempts(before: Mapping[str, Any] | None, attempt: Mapping[str, Any]) -> dict[str, Any]:
    """What study.json says of the train commands on it, with one more; no start where older ones are unknown."""
    if before is None:
        return {"started": {key: value for key, value in attempt.items() if key != "command"}, "attempts": [attempt]}
    started = {"started": before["started"]} if "started" in before else {}
    return {**started, "attempts": [*before.get("attempts", ()), attempt]}


class Store:
    """A results folder. Reading needs nothing to exist; writing makes what it needs.

    Args:
        root: the folder that holds runs/, studies/, reports/ and the ledger of what was written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def run_dir(self, run_id: str) -> Path:
        return self.root / "runs" / run_id

    def study_path(self, name: str) -> Path:
        return self.root / "studies" / name / "study.json"

    def report_dir(self, name: str) -> Path:
        return self.root / "reports" / name

    def checkpoint_path(self, run_id: str) -> Path:
        return self.run_dir(run_id) / "checkpoint"

    def weights_path(self, run_id: str) -> Path:
        """The trained network's state_dict, as torch saves it."""
        return self.run_dir(run_id) / "weights.pt"

    def predictions_path(self, run_id: str) -> Path:
        """The predicted class, the label and the index of every test image, as `numpy.load` reads them."""
        return self.run_dir(run_id) / PREDICTIONS

    def error_path(self, run_id: str) -> Path:
        return self.run_dir(run_id) / "error.txt"

    def require_writable(self) -> None:
        """Raises StoreError, in one line, where runs could not be written."""
        try:
            (self.root / "runs").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / "runs"):
                pass
        except OSError as error:
            raise StoreError(f"results: cannot write to {str(self.root)!r}: {error.strerror}") from error

    def record(self, run_id: str) -> RunRecord | None:
        """The record of a run that has ended, else None.

        Raises:
            StoreError: record.json is there and is not a record.
        """
        path = self.run_dir(run_id) / RECORD
        try:
            raw = read_json(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            return RunRecord.from_dict(raw)
        except (KeyError, TypeError) as error:
            raise StoreError(f"{path}: not a run record ({error})") from error

    def records(self, run_ids: Iterable[str] | None = None) -> Iterator[RunRecord]:
        """The records of these runs, or of all on disk, sorted by id; runs that have not ended are passed over."""
        for run_id in self.run_ids() if run_ids is None else run_ids:
            record = self.record(run_id)
            if record is not None:
                yield record

    def run_ids(self) -> list[str]:
        """The ids of all runs that have a folder, ended or not, sorted."""
        try:
            with os.scandir(self.root / "runs") as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def write_record(self, record: RunRecord) -> None:
        """Write record.json: the last file of a training, and again when a probe of the trained network is added.

        The ledger is told first: a crash in between leaves a run that the next train command does again.
        """
        folder = self.run_dir(record.run_id)
        folder.mkdir(parents=True, exist_ok=True)
        content = (json.dumps(record.to_dict(), indent=1, allow_nan=False) + "\n").encode()
        others = {name: digest for name, digest in self.digests(record.run_id).items() if name != RECORD}
        if record.status == "failed":
            others = {}  # the run is tried again, over its other files
        with appending(self.root) as append:
            append("record", run_id=record.run_id, sha256=hashlib.sha256(content).hexdigest(), files=others)
            write_atomic(folder / RECORD, content)

    def ledger(self) -> Ledger:
        """What was written here, as the ledger has it."""
        return read_ledger(self.root)

    def digests(self, run_id: str) -> dict[str, str]:
        """The SHA-256 of each file of a run that reports read: those of `READ_BY_REPORTS` that are there."""
        found = {}
        for name in READ_BY_REPORTS:
            try:
                content = (self.run_dir(run_id) / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            found[name] = hashlib.sha256(content).hexdigest()
        return found

    def write_config(self, run_id: str, config: dict[str, Any]) -> None:
        folder = self.run_dir(run_id)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "config.json", json.dumps(config, indent=1, allow_nan=False) + "\n")

    def write_history(self, run_id: str, rows: list[dict[str, Any]]) -> None:
        """Replace history.jsonl."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        write_atomic(self.run_dir(run_id) / HISTORY, text)

    def append_history(self, run_id: str, row: dict[str, Any]) -> None:
        """Add one epoch, so that a long run can be watched; `write_history` at the end makes it durable."""
        with (self.run_dir(run_id) / HISTORY).open("a") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """One dict an epoch, in order; empty where there is none. A half-written last line is passed over."""
        return _read_rows(self.run_dir(run_id) / HISTORY)

    def write_probes(self, run_id: str, rows: list[dict[str, Any]]) -> None:
        """Replace probes.jsonl."""
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
        write_atomic(self.run_dir(run_id) / PROBES, text)

    def probes(self, run_id: str, probe: str | None = None) -> list[dict[str, Any]]:
        """What the probes of a run, or one of them, measured: one dict a number, in order; empty where there were none.

        A run may have tens of thousands of numbers: lines of other probes are not parsed.
        """
        needle = "" if probe is None else json.dumps({"probe": probe})[1:-1]
        return _read_rows(self.run_dir(run_id) / PROBES, needle)

    def write_predictions(self, run_id: str, predictions: Predictions) -> None:
        """Replace predictions.npz."""
        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            predicted=predictions.predicted,
            label=predictions.label,
            image=predictions.image,
            chance_class=np.array(predictions.chance_class, dtype=predictions.label.dtype),
            num_train=np.array(predictions.num_train, dtype=np.int64),
        )
        write_atomic(self.predictions_path(run_id), buffer.getvalue())

    def add_predictions(self, run_id: str, predictions: Predictions) -> None:
        """Write the predictions of a run that has ended, and tell the ledger of this file alone."""
        self.write_predictions(run_id, predictions)
        with appending(self.root) as append:
            append("file", run_id=run_id, name=PREDICTIONS, sha256=self.digests(run_id)[PREDICTIONS])

    def predictions(self, run_id: str) -> Predictions | None:
        """What a run predicted on test; None where it did not leave that.

        Raises:
            StoreError: predictions.npz is there and cannot be read.
        """
        import numpy as np

        path = self.predictions_path(run_id)
        try:
            with np.load(path, allow_pickle=False) as raw:
                predicted, label, image = raw["predicted"], raw["label"], raw["image"]
                chance_class, num_train = int(raw["chance_class"]), int(raw["num_train"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UNREADABLE as error:
            raise StoreError(f"{path}: not a run's predictions ({' '.join(str(error).split())})") from error
        if predicted.ndim != 1 or not predicted.shape == label.shape == image.shape:
            shapes = f"{predicted.shape}, {label.shape} and {image.shape}"
            raise StoreError(f"{path}: not a run's predictions (arrays of {shapes})")
        return Predictions(predicted, label, image, chance_class, num_train)

    @contextmanager
    def lock(self, run_id: str, *, timeout_seconds: float) -> Iterator[bool]:
        """Hold a run's lock; yields False where another process kept it for all of `timeout_seconds`.

        The kernel frees the lock of a process that dies, so a killed sweep leaves none behind.
        """
        self.run_dir(run_id).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.run_dir(run_id) / ".lock", timeout=timeout_seconds)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def is_locked(self, run_id: str) -> bool:
        """Whether some process is training this run now."""
        if not (self.run_dir(run_id) / ".lock").exists():
            return False
        with self.lock(run_id, timeout_seconds=0) as held:
            return not held

    def write_study(self, name: str, study: Mapping[str, Any], *, attempt: Mapping[str, Any] | None = None) -> None:
        """Write study.json, and tell the ledger where anything that decides a verdict is new.

        Args:
            attempt: the train command that asks for it, appended to those before it: time, commit, command and the
                like. The first, without its command, is when the study was started.

        Raises:
            StoreError: study.json was changed by other hands since it was written.
        """
        path = self.study_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with appending(self.root) as append:
            before = self.study(name)
            event = study_event(self.root, name, study, again=before is not None)
            seen = self.ledger().last_study(name)
            is_new = seen is None or seen.get("digest") != event["digest"]
            if seen is not None and before is not None and is_new and study_digest(before) != seen.get("digest"):
                raise StoreError(
                    f"{str(path)!r} was changed after it was frozen: restore it, or use another results folder"
                )
            content = dict(study) if attempt is None else {**study, **_attempts(before, attempt)}
            if is_new:
                append("study", **event)
            if attempt is not None:
                append("attempt", name=name, **attempt)
            write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")

    def study(self, name: str) -> dict[str, Any] | None:
        """study.json, else None."""
        try:
            raw = read_json(self.study_path(name))
        except FileNotFoundError:
            return None
        return dict(raw)

    def study_names(self) -> list[str]:
        """The studies that were started in this folder, sorted."""
        return sorted(path.parent.name for path in (self.root / "studies").glob("*/study.json"))
