"""A target's run in a process of its own, watched: CPU time, wall-clock time and memory have limits.

One helper process (`lowbit.export.child`) lives as long as this one and forks for every run, so that a run starts in
milliseconds and leaves nothing behind for the next. The limits hold for everything that a run starts. They keep an accident
or a hostile bundle from taking the machine; they isolate nothing: a run can read and write what its user can.
"""

import atexit
import contextlib
import dataclasses
import functools
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
import safetensors

from lowbit.packed.files import decode_tensors
from lowbit.targets.target import Target

from .child import ANSWER, OUTPUTS
from .reading import Bundle
from .runners import Ran
from .storage import Stored

_WATCHED = 0.02
"""Seconds between two looks at a run."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one target may take.

    Attributes:
        wall_seconds: from start to end.
        cpu_seconds: of all its processes together.
        memory_bytes: resident, of all its processes together.
    """

    wall_seconds: float = 900.0
    cpu_seconds: float = 1800.0
    memory_bytes: int = 16 << 30

    def __post_init__(self):
        for name in ("wall_seconds", "cpu_seconds", "memory_bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name} must be a positive number, got {value!r}")


def run(bundle: Bundle, target: Target, limits: Limits, *, is_asked: bool) -> tuple[dict[str, Any], Ran | None]:
    """Returns what a target made of a bundle: status (``ran``, ``failed``, ``not run``) and detail, and what was found.

    Args:
        bundle: that was read; the child reads and checks it again.
        target: what runs it.
        limits: of the run.
        is_asked: whether the target was asked for by name.
    """
    with tempfile.TemporaryDirectory(prefix="lowbit-") as place:
        order = {
            "folder": place,
            "bundle": os.path.abspath(bundle.path),
            "target": target.name,
            "is_asked": is_asked,
            "cpu_seconds": limits.cpu_seconds,
            "x64": bool(jax.config.jax_enable_x64),  # pyright: ignore[reportAttributeAccessIssue] - set when jax starts
        }
        reason = _helper().run(order, limits)
        try:
            return _read(Path(place), bundle)
        except FileNotFoundError:
            return {"status": "failed", "detail": reason or "its process ended without an answer"}, None
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            return {"status": "failed", "detail": f"its process gave no answer that can be read: {error}"}, None


def _read(folder: Path, bundle: Bundle) -> tuple[dict[str, Any], Ran | None]:
    said = json.loads((folder / ANSWER).read_bytes())
    fields = said.pop("ran", None)
    if fields is None:
        return said, None
    outputs = None
    if fields["cases"] is not None:
        arrays = decode_tensors((folder / OUTPUTS).read_bytes())
        count = max((int(name.split("_")[1]) + 1 for name in arrays), default=0)
        outputs = [[np.asarray(arrays[f"{n}_{i}"]) for i in range(count)] for n in range(fields["cases"])]
    stored = None if fields["stored"] is None else tuple(Stored(*each) for each in fields["stored"])
    return said, Ran(outputs, fields["compiled"], stored, fields["measured"], fields["constants"])


class _Helper:
    """The helper process."""

    def __init__(self):
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, order: dict[str, Any], limits: Limits) -> str:
        """Has an order run, and returns why that did not end by itself, or how; empty where it ended well."""
        with self.lock:
            line = json.dumps(order).encode() + b"\n"
            for _ in range(2):  # a helper that died between two orders is replaced
                process = self._started()
                assert process.stdin is not None
                assert process.stdout is not None
                try:
                    process.stdin.write(line)
                    process.stdin.flush()
                    child = int(process.stdout.readline())
                except (OSError, ValueError):
                    self.stop()
                    continue
                try:
                    return self._watched(process.stdout, child, limits)
                finally:
                    _kill(child)  # and what it has started
            return "no process can be started to run it: see standard error"

    def _started(self) -> "subprocess.Popen[bytes]":
        if self.process is not None and self.process.poll() is not None:
            self.stop()  # its pipes are closed here: a pipe that is collected open warns wherever that happens to be
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", "-m", "lowbit.export.child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment(), start_new_session=True,
            )  # fmt: skip
        return self.process

    def _watched(self, answers: IO[bytes], child: int, limits: Limits) -> str:
        start, reason = time.monotonic(), ""
        while not select.select([answers], [], [], _WATCHED)[0]:
            cpu, memory = _usage(child)
            spent = time.monotonic() - start
            if spent > limits.wall_seconds:
                reason = f"stopped after {limits.wall_seconds:g} seconds"
            elif cpu > limits.cpu_seconds:
                reason = f"stopped after {limits.cpu_seconds:g} seconds of CPU time"
            elif memory > limits.memory_bytes:
                reason = f"stopped: it took more than {limits.memory_bytes / 1e9:.3g} GB of memory"
            if reason:
                _kill(child)
                answers.readline()
                return reason
        ended = int(answers.readline() or b"-9")
        if ended == -signal.SIGXCPU:  # its own limit came before our look
            return f"stopped after {limits.cpu_seconds:g} seconds of CPU time"
        return f"its process ended by {signal.Signals(-ended).name}" if ended < 0 else ""

    def stop(self) -> None:
        """Ends the helper."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
            self.process = None


@functools.cache
def _helper() -> _Helper:
    helper = _Helper()
    atexit.register(helper.stop)
    os.register_at_fork(after_in_child=_helper.cache_clear)
    return helper


def _environment() -> dict[str, str]:
    """That of this process, with the places it imports from; one thread in libraries that start theirs when imported."""
    places = [place or os.getcwd() for place in sys.path]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(places),
        "OPENBLAS_NUM_THREADS": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }


def _kill(child: int) -> None:
    with contextlib.suppress(OSError):
        os.killpg(child, signal.SIGKILL)


def _usage(session: int) -> tuple[float, int]:
    """CPU seconds, and resident bytes, of all processes of a session."""
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    seconds, pages = 0.0, 0
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(fields[3]) == session:
            seconds += sum(map(int, fields[11:15])) / tick
            pages += int(fields[21])
    return seconds, pages * page
