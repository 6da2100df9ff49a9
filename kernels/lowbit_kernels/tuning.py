"""Configurations found by measurement, and where they are looked up.

An implementation that has options (`Implementation.config`, a frozen dataclass of integers and strings) gets them from
the first of: the caller's `config=`; `with using(table)`; the user's cache; the table in this package; and if none has
an entry, None, where the implementation's own heuristic decides. A configuration changes time, never an integer result.

A table maps `Key.text` to an entry `{"config": {field: value}, "ms": float, "heuristic_ms": float}`; a file holds the
table of one device kind. `python -m lowbit_kernels.bench --tune` measures and writes one.

Look-ups happen while a call is traced: a function that is compiled already keeps the configuration it was traced with.
"""

import contextlib
import contextvars
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from lowbit_kernels import platforms
from lowbit_kernels.spec import Implementation, MatmulSpec

CACHE_VARIABLE = "LOWBIT_KERNELS_CACHE"
Table = Mapping[str, Mapping[str, Any]]

_context: contextvars.ContextVar[Table] = contextvars.ContextVar("lowbit_kernels_tuning", default=MappingProxyType({}))


class Key(NamedTuple):
    """What a configuration was measured for.

    Attributes:
        op: the implementation's name and the kind of activations, "pallas_tpu/dynamic".
        device: kind of device, see `device_kind`.
        rows: M, rounded up to a power of two.
        out, length: N and K.
        bits, group: of the weight.
        x_dtype: of the activations.
        jax: minor version, "0.10".
    """

    op: str
    device: str
    rows: int
    out: int
    length: int
    bits: int
    group: int
    x_dtype: str
    jax: str

    @property
    def text(self) -> str:
        """The key as it stands in a table; the device is the table's own."""
        return (
            f"{self.op} M{self.rows} N{self.out} K{self.length} w{self.bits}/g{self.group} {self.x_dtype} jax{self.jax}"
        )


def key_of(name: str, spec: MatmulSpec) -> Key:
    """The key of a matmul run by the implementation called `name`."""
    return Key(
        op=f"{name}/{spec.activation}",
        device=device_kind(spec.platform),
        rows=bucket(spec.rows),
        out=spec.out,
        length=spec.length,
        bits=spec.bits,
        group=spec.group,
        x_dtype=spec.x_dtype,
        jax=".".join(jax.__version__.split(".")[:2]),
    )


def bucket(rows: int) -> int:
    """The next power of two, at least 1.

    >>> [bucket(m) for m in (0, 1, 3, 8, 9)]
    [1, 1, 4, 8, 16]
    """
    return 1 << max(rows - 1, 0).bit_length()


def device_kind(platform: str) -> str:
    """Kind of the first device of `platform`, in lower case, or "not here"; of a CPU the best instruction set and the cores."""
    if platform == "cpu":
        from lowbit_kernels.cpu.library import status  # the CPU's own module asks this one for configurations

        return f"cpu {next(iter(status().isas), 'scalar')} x{os.cpu_count()}"
    return (platforms.device_kind(platform) or "not here").lower()


def lookup(implementation: Implementation, spec: MatmulSpec) -> Any:
    """The configuration measured for `spec`, an `implementation.config`, or None for the heuristic.

    Raises:
        ValueError: an entry does not fit the dataclass (a table of another version), with the table's key.
    """
    if implementation.config is None:
        return None
    key = key_of(implementation.name, spec)
    for read_table in (_context.get, lambda: _user_table(key.device), lambda: _packaged_table(key.device)):
        table = read_table()
        if key.text in table:
            try:
                return implementation.config(**table[key.text]["config"])
            except (TypeError, KeyError) as error:
                raise ValueError(
                    f"tuning entry {key.text!r} does not fit {implementation.config.__name__}: {error}; tune again"
                ) from error
    return None


@contextlib.contextmanager
def using(table: Table) -> Iterator[None]:
    """Makes `table` the first that is asked, for calls traced inside. Tables nest; the innermost is asked alone.

    >>> with using({}):
    ...     pass
    """
    token = _context.set(table)
    try:
        yield
    finally:
        _context.reset(token)


def entry(config: Any, ms: float, heuristic_ms: float) -> dict[str, Any]:
    """A table's entry: the fields of `config` that are set, its time and the heuristic's in the same run."""
    fields = {k: v for k, v in dataclasses.asdict(config).items() if v is not None}
    return {"config": fields, "ms": round(ms, 4), "heuristic_ms": round(heuristic_ms, 4)}


def user_path(device: str) -> pathlib.Path:
    """The user's table of a device kind, under LOWBIT_KERNELS_CACHE, or `lowbit_kernels` in XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get(CACHE_VARIABLE)
    if root is None:
        root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "lowbit_kernels"
    return pathlib.Path(root) / _file_name(device)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The table in a JSON file; empty where there is none.

    Raises:
        ValueError: the file does not hold a table.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a tuning table: {error}; remove it or tune again") from error
    if not isinstance(table, dict) or not all(isinstance(e, dict) and "config" in e for e in table.values()):
        raise ValueError(f"{path} is not a tuning table: every entry needs a 'config'; remove it or tune again")
    return table


def write(path: str | os.PathLike[str], table: Table) -> None:
    """Adds `table` to the file's, in one atomic step: a reader sees the old file or the new one, after a kill too.

    Writers of a folder take turns, so that none loses what another adds, and what a killed one left there is removed.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    start, end = f".{path.name}.", ".part"
    with _turn(path.parent) as folder:
        for name in os.listdir(folder):
            if name.startswith(start) and name.endswith(end):
                os.unlink(name, dir_fd=folder)
        merged = dict(sorted({**read(path), **table}.items()))
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=start, suffix=end)
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(merged, file, indent=1)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            os.fsync(folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # it is in its place already
                os.unlink(temporary)
            raise
    _read_cached.cache_clear()


@contextlib.contextmanager
def _turn(folder: pathlib.Path) -> Iterator[int]:
    """Gives a descriptor of a folder, locked: the lock of a process that is killed is gone."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle
    finally:
        os.close(handle)


def _user_table(device: str) -> Table:
    path = user_path(device)
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return {}
    return _read_cached(path, changed)


@functools.lru_cache(maxsize=16)
def _read_cached(path: pathlib.Path, changed: int) -> Table:
    return read(path)


def packaged() -> list[pathlib.Path]:
    """The tables in this package, a file a device kind."""
    return sorted((pathlib.Path(__file__).parent / "tables").glob("*.json"))


@functools.cache
def _packaged_table(device: str) -> Table:
    return next((read(path) for path in packaged() if path.name == _file_name(device)), {})


def _file_name(device: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", device) + ".json"
