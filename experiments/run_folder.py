"""The folder of a run: what was asked, where it ran, what came out. Pieces that are finished are not done again."""

import datetime as dt
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

from experiments.config import plain
from lowbit.core import atomic

PACKAGES = (
    "lowbit", "lowbit-kernels", "jax", "jaxlib", "flax", "optax", "numpy", "safetensors",
    "iree-base-compiler", "iree-base-runtime",
)  # fmt: skip
TIMES = "seconds"
"""Metrics under this key, and under ``latency``, differ from run to run; every other number is the same bits again."""


def write_json(path: Path, value: Any) -> None:
    atomic.write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any | None:
    """Returns the content of ``path``, or None if there is no such file or it is damaged."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def environment() -> dict[str, Any]:
    """Returns versions, device and commit: what a number depends on besides the config."""
    device = jax.devices()[0]
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "device": {"platform": device.platform, "kind": device.device_kind, "cpu": _cpu(), "cores": os.cpu_count()},
        "system": platform.platform(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **_commit(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> dict[str, Any]:
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]
    try:  # only of a repository that holds this file: a copy may lie in another one's folder
        subprocess.run([*command, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        commit = subprocess.run([*command, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*command, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}


class Seeded(Protocol):
    """A config: a frozen dataclass with seeds."""

    @property
    def seeds(self) -> tuple[int, ...]: ...


class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: the folder.
        environment: from `environment`.
        reused: names of the finished pieces that were found.
    """

    def __init__(self, path: Path, config: Seeded, *, fresh: bool = False):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path} is a file: choose another folder with --out")
        atomic.settle(path)
        atomic.settle(path / "config.json")  # what a kill left of a first file does not make the folder somebody else's
        if fresh and path.exists():
            if not (path / "config.json").is_file() and any(path.iterdir()):
                raise FileExistsError(
                    f"{path} holds other files and no config.json: it will not be emptied; choose --out"
                )
            atomic.emptied(path)
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.environment = environment()
        self.reused: list[str] = []
        before = read_json(path / "config.json")
        asked = json.loads(json.dumps(plain(config)))
        self.is_changed = before is not None and before != asked
        write_json(path / "config.json", asked)
        started = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        run = {"seeds": list(config.seeds), "started": started, "command": sys.argv, **self.environment}
        write_json(path / "run.json", run)

    def piece(self, name: str) -> Path:
        """Returns the folder of a piece, such as ``seed-0/lsq_w4a4``."""
        folder = self.path / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def finished(self, name: str, key: str) -> dict[str, Any] | None:
        """Returns the result of a piece that was finished with the same key, or None."""
        stored = read_json(self.path / name / "result.json")
        if stored is None or stored.get("key") != key:
            return None
        self.reused.append(name)
        return stored["result"]

    def is_finished(self, name: str) -> bool:
        """Whether a piece was finished once, with whatever key."""
        return (self.path / name / "result.json").exists()

    def finish(self, name: str, key: str, result: Mapping[str, Any]) -> None:
        """Keeps the result of a piece; it is finished once this returns."""
        write_json(self.path / name / "result.json", {"key": key, "result": dict(result)})

    def log(self, name: str, kind: str, **values: Any) -> None:
        """Appends a line to ``metrics.jsonl``; a line of the same piece, kind and epoch is replaced."""
        path = self.path / "metrics.jsonl"
        line = {"piece": name, "kind": kind, **values}
        same = ("piece", "kind", "epoch")
        lines = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
        kept = [old for old in lines if any(old.get(k) != line.get(k) for k in same)]
        atomic.write(path, "".join(json.dumps(item) + "\n" for item in (*kept, line)))
