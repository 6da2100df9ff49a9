"""What a piece depends on, as text: values by content, functions by what they do.

A function of the user's is its bytecode, without docstrings, comments and line numbers, with its defaults, the values that it
closed over, and the globals that it names, functions and classes among them in turn. A function of an installed package is
its name and the package's version, with what it closed over. A function of lowbit is its name: what lowbit computes is known
by `numerics`, the code of its modules. So a penalty whose strength changed is another penalty, wherever the strength stands.
"""

import ast
import dataclasses
import dis
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.kept import digest
from lowbit.core.quantizer import Quantizer

_OURS = ("lowbit", "lowbit_kernels")
_INSTALLED = {"site-packages", "dist-packages"}
"""Folders of packages; what else is imported is the user's own, an editable install too."""
_ALWAYS = ("core", "formats", "program", "plan", "packed", "interpret", "adapters", "observe", "calibrate", "learn")
"""Folders of lowbit that every method goes through: ranges are observed, and what was learned is hardened, without a fit too."""
_ROUNDING = "lowbit.quantizers.rtn"
"""What a rule's text stands for."""
_ENGINE = ("allocating", "losses", "measure", "metric", "pieces", "samples", "training")
"""Modules of this folder that numbers depend on."""


def fingerprint(*parts: Any) -> str:
    """Returns a short name of values that changes with anything in them.

    Example:
        >>> def penalty(strength):
        ...     return lambda w: strength * w
        >>> fingerprint(penalty(1.0)) == fingerprint(penalty(1.0)) != fingerprint(penalty(1000.0))
        True
    """
    describer = _Describer()
    text = json.dumps([describer.of(part) for part in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def joined(keys: Sequence[str], *parts: Any) -> str:
    """Returns the key of what depends on others by their keys, and on further values."""
    asked, code = zip(*(key.split(".") for key in keys), strict=True)
    return f"{fingerprint(asked, *parts)}.{fingerprint(code)}"


def is_asked_alike(one: Any, other: str) -> bool:
    """Returns whether what two keys ask for is the same; the first is read from a file."""
    return isinstance(one, str) and one.partition(".")[0] == other.partition(".")[0]


def modules_of(value: Any) -> frozenset[str]:
    """Returns the modules of lowbit whose functions and classes a value holds or calls."""
    describer = _Describer()
    describer.of(value)
    return frozenset(describer.modules)


def numerics(modules: Iterable[str] = (), folders: Iterable[str] = ()) -> str:
    """Returns a hash of the code of lowbit, without docstrings and comments, that a method's numbers come from.

    Args:
        modules: further modules, such as ``lowbit.quantizers.lsq``; from `modules_of`.
        folders: further folders of lowbit, such as ``recipes``.
    """
    return _numerics(tuple(sorted({*modules, _ROUNDING})), tuple(sorted({*folders, *_ALWAYS})))


@functools.cache
def _numerics(modules: tuple[str, ...], folders: tuple[str, ...]) -> str:
    root = Path(__file__).parents[1]
    paths = {path for folder in folders for path in (root / folder).rglob("*.py")}
    paths |= {root / "run" / f"{name}.py" for name in _ENGINE}
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(root):
            paths.add(Path(spec.origin))
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.relative_to(root)} {_code_of(path)}".encode())
    digest.update(str(_version("lowbit-kernels")).encode())
    return digest.hexdigest()[:24]


def reached(modules: Iterable[str]) -> frozenset[str]:
    """Returns modules of lowbit with all that they import in turn, but for what `numerics` has of every method."""
    visited: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        parts = name.split(".")
        if parts[0] != "lowbit" or len(parts) < 3 or parts[1] in _ALWAYS or name in visited:
            continue  # packages alone hold no code
        visited.add(name)
        waiting += _imported(name)
    return frozenset(visited)


@functools.cache
def _imported(module: str) -> tuple[str, ...]:
    """The modules that a module of lowbit names in its imports."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ()
    names = []
    for node in ast.walk(ast.parse(Path(spec.origin).read_bytes())):
        if isinstance(node, ast.Import):
            names += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            lead = ".".join(module.split(".")[: -node.level]) if node.level else ""
            base = ".".join(part for part in (lead, node.module or "") if part)
            names += [base, *(f"{base}.{each.name}" for each in node.names)]
    return tuple(name for name in names if name.startswith("lowbit.") and _is_module(name))


def _is_module(name: str) -> bool:
    path = Path(__file__).parents[1].joinpath(*name.split(".")[1:])
    return path.with_suffix(".py").is_file()


@functools.cache
def _code_of(path: Path) -> str:
    """A hash of what a file computes: its syntax tree without docstrings."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [line for line in node.body if not _is_text(line)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(line: ast.stmt) -> bool:
    return isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) and isinstance(line.value.value, str)


@functools.cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _is_installed(module: str) -> bool:
    """Whether a module comes with Python or an installed package: known by its version."""
    if module == "builtins" or module.partition(".")[0] in sys.stdlib_module_names:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and not _INSTALLED.isdisjoint(Path(file).parts)


class _Describer:
    """One walk over a value; functions, classes and objects that were met before are named by their number."""

    def __init__(self):
        self.modules: set[str] = set()
        self._met: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is used twice

    def of(self, value: Any) -> Any:
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float | complex):
            return [type(value).__name__, repr(value)]
        if isinstance(value, bytes):
            return ["bytes", hashlib.sha256(value).hexdigest()]
        if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return ["key", digest(value)]
        if isinstance(value, np.ndarray | np.generic | jax.Array):
            return ["array", digest(value)]
        if isinstance(value, types.CodeType):
            return self._code(value)
        if isinstance(value, types.ModuleType):
            return ["module", self._named(value.__name__, "")]
        if isinstance(value, Mapping):
            return ["map", sorted(([str(key), self.of(item)] for key, item in value.items()), key=lambda pair: pair[0])]
        if isinstance(value, set | frozenset):
            return ["set", sorted(json.dumps(self.of(item), sort_keys=True) for item in value)]
        if isinstance(value, tuple | list) and type(value) in (tuple, list):
            return [type(value).__name__, *[self.of(item) for item in value]]
        return self._once(value)

    def _once(self, value: Any) -> Any:
        if id(value) in self._met:
            return ["again", self._met[id(value)]]
        self._met[id(value)] = len(self._met)
        self._kept.append(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, functools.partial):
            return ["partial", self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if isinstance(value, types.MethodType):
            return ["method", self.of(value.__func__), self.of(value.__self__)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, staticmethod | classmethod):
            return [type(value).__name__, self.of(value.__func__)]
        if isinstance(value, property):
            return ["property", self.of(value.fget), self.of(value.fset)]
        if callable(inner := getattr(value, "__wrapped__", None)) and not isinstance(value, type):
            return ["wrapped", self.of(inner)]
        return self._object(value)

    def _named(self, module: str, name: str) -> str:
        """A name that stands for code which is known otherwise; modules of lowbit are noted for `numerics`."""
        root = module.partition(".")[0]
        if root in _OURS:
            self.modules.add(module)
            return f"{module}:{name}"
        return f"{module}:{name} {_version(root) or ''}".rstrip()

    def _function(self, value: types.FunctionType) -> Any:
        parts: list[Any] = [self.of(value.__defaults__), self.of(value.__kwdefaults__)]
        for cell in value.__closure__ or ():
            try:
                parts.append(self.of(cell.cell_contents))
            except ValueError:  # a cell that is not filled yet
                parts.append(["empty"])
        module = value.__module__ or ""
        if module.partition(".")[0] in _OURS or _is_installed(module):
            return ["function", self._named(module, value.__qualname__), *parts]
        return ["function", self._code(value.__code__), *parts, self._globals(value.__code__, value.__globals__)]

    def _code(self, code: types.CodeType) -> Any:
        lines = []
        for step in dis.get_instructions(code):
            if step.opname in ("RESUME", "NOP", "CACHE", "EXTENDED_ARG"):
                continue
            known = step.argval
            argument = self._code(known) if isinstance(known, types.CodeType) else self._constant(known)
            if step.opname == "STORE_NAME" and known == "__doc__":
                lines.pop()  # the text that it stores
                continue
            lines.append([step.opname, argument])
        return [
            "code",
            code.co_argcount,
            code.co_kwonlyargcount,
            code.co_flags & 0x2C,
            lines,
            code.co_exceptiontable.hex(),
        ]

    def _constant(self, value: Any) -> Any:
        return self.of(value) if isinstance(value, tuple | frozenset | float | complex | bytes) else repr(value)

    def _globals(self, code: types.CodeType, space: Mapping[str, Any]) -> Any:
        """What code finds under its global names; of a module of the user's, what it takes of it."""
        names = _names(code)
        pairs = []
        for name in sorted(names & set(space)):
            value = space[name]
            if isinstance(value, types.ModuleType) and not _is_known(value.__name__):
                taken = [[each, self.of(getattr(value, each))] for each in sorted(names) if hasattr(value, each)]
                pairs.append([name, ["module", taken]])
            else:
                pairs.append([name, self.of(value)])
        return pairs

    def _class(self, value: type) -> Any:
        if _is_known(value.__module__):
            return ["class", self._named(value.__module__, value.__qualname__)]
        members = []
        for name, member in sorted(vars(value).items()):
            if name in ("__doc__", "__module__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"):
                continue
            if isinstance(member, types.FunctionType) and member.__code__.co_filename.startswith("<"):
                continue  # written by dataclasses, from the fields
            members.append([name, self.of(member)])
        return ["class", value.__qualname__, [self.of(base) for base in value.__bases__], members]

    def _object(self, value: Any) -> Any:
        kind = self.of(type(value))
        if isinstance(value, Quantizer):
            return ["quantizer", kind, value.text]
        if isinstance(value, tuple | list):  # named tuples and subclasses
            return ["items", kind, [self.of(item) for item in value]]
        if dataclasses.is_dataclass(value):
            fields = [field.name for field in dataclasses.fields(value)]
            return ["data", kind, [[name, self.of(getattr(value, name, None))] for name in fields]]
        if isinstance(value, types.BuiltinFunctionType):
            return ["builtin", self._named(value.__module__ or "builtins", value.__qualname__)]
        parts = ["object", kind]
        if not _is_known(type(value).__module__):
            parts.append(self.of(vars(value) if hasattr(value, "__dict__") else {}))
        elif not jax.tree_util.all_leaves([value]):  # an nnx module's text has the shapes of its arrays alone
            parts.append([self.of(leaf) for leaf in jax.tree.leaves(value)])
        return parts if " at 0x" in (text := repr(value)) else [*parts, text]


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names


def _is_known(module: str) -> bool:
    return module.partition(".")[0] in _OURS or _is_installed(module)
