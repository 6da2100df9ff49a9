"""Times of operations measured on this machine, kept in the user's cache: none is measured twice, and none is guessed.

A table is of one processor, its number of cores, the instruction set of the kernels, the kernels' library, lowbit, jax and the device
that runs: where one of them changes, another table is begun. Several processes may write one.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import TypedDict

from lowbit.core import atomic
from lowbit.core.folders import cache_folder
from lowbit.packed.machine import machine

VARIABLE = "LOWBIT_TIMETABLE"
"""The variable that names another folder."""


class Entry(TypedDict):
    """What is kept of an operation: primitive and shapes, quantizers of its sites, milliseconds."""

    operation: str
    quantizers: list[str]
    ms: float


def folder() -> Path:
    """Returns where tables are: ``$LOWBIT_TIMETABLE``, else ``lowbit/times`` in the user's cache folder."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    return cache_folder() / "times"


class Timetable:
    """A table of this machine, in a file of `folder`.

    Attributes:
        path: the file; it is made when the first time is kept.
    """

    def __init__(self) -> None:
        self._machine = machine()
        name = hashlib.sha256(json.dumps(self._machine, sort_keys=True).encode()).hexdigest()[:16]
        self.path = folder() / f"{name}.json"
        self._entries = self._read()

    def __len__(self) -> int:
        return len(self._entries)

    def lookup(self, text: str) -> float | None:
        """Returns the milliseconds kept of an operation's whole description, or None."""
        entry = self._entries.get(_key(text))
        return None if entry is None else entry["ms"]

    def keep(self, text: str, entry: Entry) -> None:
        """Writes what was measured of a whole description, beside what other processes kept meanwhile.

        A cache that cannot be written is none: what was measured counts all the same.
        """
        now = {_key(text): entry}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._entries = self._read() | now
                content = {"machine": self._machine, "entries": self._entries}
                atomic.write_file(self.path, json.dumps(content, indent=1, sort_keys=True) + "\n")
        except OSError:
            self._entries = self._entries | now

    def _read(self) -> dict[str, Entry]:
        try:
            content = json.loads(self.path.read_text())
            entries = {
                key: Entry(operation=str(e["operation"]), quantizers=list(e["quantizers"]), ms=float(e["ms"]))
                for key, e in content["entries"].items()
                if 0 < float(e["ms"]) < float("inf")
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not one of these tables
            return {}
        return entries if content.get("machine") == self._machine else {}


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
