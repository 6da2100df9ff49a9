"""The folder of a run: what was asked, where it ran, what came out. Pieces that are finished are not done again.

Several workers, processes or machines with a shared file system, may work in one folder: a piece is locked by who does it,
and the lock dies with its owner; metrics are appended, a line in one write. What is read back is checked, every bit of it.
"""

import contextlib
import datetime as dt
import fcntl
import functools
import hashlib
import json
import os
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Protocol

from lowbit.core import atomic
from lowbit.core.quantizer import Quantizer

from .environment import environment
from .identity import is_asked_alike
from .states import State

TIMES = "seconds"
"""Metrics under this key, and under ``latency``, differ from run to run; every other number is the same bits again."""

METRICS = "metrics.jsonl"
RESULT = "result.json"
_TRAINING = "train"
SETTLED = "settled"
"""Of a piece: the folder of the training that follows learned widths."""
_OWN = (RESULT, _TRAINING, SETTLED)
"""Of a piece, the file and the folders that carry checks of their own."""


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON, whole or not at all."""
    atomic.write_file(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any | None:
    """Returns the content of ``path``, or None if there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


@functools.singledispatch
def plain(value: Any) -> Any:
    """Returns ``value`` as JSON data to be read: functions by name, quantizers by their text."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    return repr(value)


@plain.register
def _(value: Quantizer) -> str:
    return value.text


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's metrics, the last of each piece, kind and epoch, in the order they were first written.

    A line that a kill cut short is left out.
    """
    last_lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    try:
        lines = (path / METRICS).read_text().splitlines()
    except OSError:
        return []
    for text in lines:
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            last_lines[tuple(line.get(key) for key in ("piece", "kind", "epoch"))] = line
    return list(last_lines.values())


def cleared(path: Path) -> None:
    """Empties the folder of a run, if it is there.

    Raises:
        FileExistsError: if it is no run's folder, or another worker is in it.
    """
    atomic.settle(path)
    atomic.settle(path / "config.json")  # what a kill left of a first file does not make the folder somebody else's
    if not path.exists():
        return
    if not (path / "config.json").is_file() and any(path.iterdir()):
        raise FileExistsError(f"{path} holds other files and no config.json: it will not be emptied; choose --out")
    with _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB) as is_ours:
        if not is_ours:
            raise FileExistsError(f"{path}: another worker is in it: stop that first, or choose --out")
        atomic.emptied(path)


class Seeded(Protocol):
    """A config: a frozen dataclass with seeds."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """One whole repetition each."""
        ...


class RunFolder:
    """Paths and files of one run.

    Args:
        path: the folder, made if need be.
        config: what is asked for.
        fresh: empty the folder first.
        accept_stale: also take finished pieces that another commit of lowbit made.

    Attributes:
        path: the folder.
        environment: from `environment`.
        is_changed: whether an earlier run here had another config.
        reused: names of the finished pieces that were found.
        stale: names of those that another commit or other code of lowbit made, whether they are taken or not.
        origins: by name of the finished pieces that were found, the commit that made them, and whether it had changes.
        damaged: names of those that are not what was written.
        absent: of a suite, experiments whose data or network cannot be had, and why.

    Raises:
        NotADirectoryError: if ``path`` is a file.
        FileExistsError: if it is to be emptied and is no run's folder, or another worker is in it.
    """

    def __init__(self, path: Path, config: Seeded, *, fresh: bool = False, accept_stale: bool = False):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path} is a file: choose another folder with --out")
        if fresh:
            cleared(path)
        else:
            atomic.settle(path)
        path.mkdir(parents=True, exist_ok=True)
        presence = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._presence = weakref.finalize(self, os.close, presence)
        with contextlib.suppress(OSError):  # a file system without locks: then --fresh cannot know
            fcntl.flock(presence, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self.path = path
        self.environment = environment()
        self.accept_stale = accept_stale
        self.reused: list[str] = []
        self.stale: list[str] = []
        self.damaged: list[str] = []
        self.origins: dict[str, dict[str, Any]] = {}
        self.absent: dict[str, str] = {}
        before = read_json(path / "config.json")
        asked = json.loads(json.dumps(plain(config)))
        self.is_changed = before is not None and before != asked
        write_json(path / "config.json", asked)
        started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        run = {"seeds": list(config.seeds), "started": started, "command": sys.argv, **self.environment}
        write_json(path / "run.json", run)

    def leave(self) -> None:
        """Ends this worker's presence: the folder may be emptied from now on; what is in it can still be read."""
        self._presence()

    def piece(self, name: str) -> Path:
        """Returns the folder of a piece, such as ``seed-0/lsq_w4a4``."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[bool]:
        """Gives whether a piece, or a part of it, is this process's alone until the end of the block."""
        path = self.path / name
        path = path.with_name(f".{path.name}.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with _locked(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB)) as is_ours:
            yield is_ours

    def state(self, name: str, key: str) -> State:
        """Returns where the state of a training is kept."""
        return State(self.piece(name) / _TRAINING, key, self.environment.get("commit"), accept_stale=self.accept_stale)

    def finished(self, name: str, key: str) -> dict[str, Any] | None:
        """Returns the result of a piece that was finished with the same key, or None.

        Where stale ones are accepted, one is taken that was asked for alike, whatever code of lowbit made it.
        """
        stored = read_json(self.path / name / RESULT)
        if not isinstance(stored, dict) or "result" not in stored or not is_asked_alike(stored.get("key"), key):
            return None
        is_sealed = "seal" in stored  # results of earlier versions are not; few keys are as they were then
        if (is_sealed and stored["seal"] != _seal(stored)) or not self._is_whole(name, stored.get("files", {})):
            self._note(self.damaged, name)
            return None
        is_other = stored["key"] != key or stored.get("commit") != self.environment.get("commit")
        if is_other:
            self._note(self.stale, name)
            if not self.accept_stale:
                return None
        self._note(self.reused, name)
        self.origins[name] = {each: stored.get(each) for each in ("commit", "dirty")}
        return stored["result"]

    def failure(self, name: str, key: str, *, since: float) -> str | None:
        """Returns the error of a piece that failed with the same key, no longer ago than a time of `time.time`; or None."""
        stored = read_json(self.path / name / RESULT)
        if not isinstance(stored, dict) or stored.get("key") != key or "error" not in stored:
            return None
        return stored["error"] if stored.get("at", 0.0) >= since else None

    def finish(self, name: str, key: str, result: Mapping[str, Any]) -> None:
        """Keeps the result of a piece; it is finished once this returns."""
        here = self.piece(name)
        files = {
            str(path.relative_to(here)): _hash(path)
            for path in sorted(here.rglob("*"))
            if path.is_file()
            and path.relative_to(here).parts[0] not in _OWN
            and not any(p.startswith(".") for p in path.relative_to(here).parts)
        }
        self._write(name, {"key": key, "result": dict(result), "files": files})

    def fail(self, name: str, key: str, error: str) -> None:
        """Keeps why a piece has no result; it is tried again by the next run."""
        self.piece(name)
        self._write(name, {"key": key, "error": error, "at": time.time()})

    def log(self, name: str, kind: str, **values: Any) -> None:
        """Appends a line to ``metrics.jsonl``; `read_metrics` takes the last of the same piece, kind and epoch."""
        line = json.dumps({"piece": name, "kind": kind, **values}) + "\n"
        handle = os.open(self.path / METRICS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            end = os.lseek(handle, 0, os.SEEK_END)
            if end and os.pread(handle, 1, end - 1) != b"\n":  # a line that a kill cut short stays a line of its own
                line = "\n" + line
            content = line.encode()
            while content:
                content = content[os.write(handle, content) :]
        finally:
            os.close(handle)

    def _write(self, name: str, content: dict[str, Any]) -> None:
        provenance = {name: self.environment.get(name) for name in ("commit", "dirty")}
        provenance["cores"] = self.environment.get("device", {}).get("cores")
        whole = json.loads(json.dumps(content | provenance))
        write_json(self.path / name / RESULT, whole | {"seal": _seal(whole)})

    def _is_whole(self, name: str, files: Mapping[str, str]) -> bool:
        return all(_hash(self.path / name / file) == digest for file, digest in files.items())

    @staticmethod
    def _note(names: list[str], name: str) -> None:
        if name not in names:
            names.append(name)


def _seal(content: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[bool]:
    handle = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, how)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
