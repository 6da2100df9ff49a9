"""The one file that knows how primitives' parameters differ between jax versions (0.10 to 0.12)."""

import contextlib
import dataclasses
import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend import core as jex
from jax.sharding import AxisType

from . import primitives, ragged
from .eqn import Eqn

INLINED = ("jit", "remat")
"""Calls (`kind`) that are their body: what is only moved in there is only moved. Others compute what they return."""


@dataclasses.dataclass(frozen=True)
class Body:
    """One function inside a primitive: a jaxpr, its constants, and which operands it takes."""

    jaxpr: Any
    consts: tuple[Any, ...]


def _body(jaxpr: Any) -> Body:
    return Body(getattr(jaxpr, "jaxpr", jaxpr), tuple(getattr(jaxpr, "consts", ())))


_KINDS = (
    ("jit", primitives.JITTED),
    ("remat", primitives.REMATTED),
    ("custom_jvp", primitives.CUSTOM_JVP),
    ("custom_vjp", primitives.CUSTOM_VJP),
)


def kind(eqn: Eqn) -> str | None:
    """Returns what sort of call an equation is (``jit scan while cond remat custom_jvp custom_vjp shard_map``), or None."""
    name = eqn.primitive.name
    if name in primitives.RAGGED:
        return "jit" if ragged.is_read(eqn) else None
    if name not in primitives.READ_INTO:
        return None
    return next((word for word, names in _KINDS if name in names), name)


def bodies(eqn: Eqn) -> tuple[Body, ...]:
    """Returns the bodies of a call: one, or (while) condition and body, or (cond) the branches."""
    what, params = kind(eqn), eqn.params
    if what == "while":
        return _body(params["cond_jaxpr"]), _body(params["body_jaxpr"])
    if what == "cond":
        return tuple(_body(branch) for branch in params["branches"])
    if eqn.primitive.name in primitives.RAGGED:
        return (_body(ragged.body(eqn)),)
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        if name in params:
            return (_body(params[name]),)
    raise TypeError(f"{eqn.primitive.name} has no body that this version of jax shows: {sorted(params)}")


def operands(eqn: Eqn, index: int) -> list[int]:
    """Returns which operands of a call its body ``index`` takes, in order."""
    what, every = kind(eqn), range(len(eqn.invars))
    if what == "cond":
        return list(every[1:])
    if what != "while":
        return list(every)
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carried = every[n_cond + n_body :]
    return [*(every[:n_cond] if index == 0 else every[n_cond : n_cond + n_body]), *carried]


def is_unseen(eqn: Eqn) -> bool:
    """Returns whether an equation may hide a matrix multiplication that cannot be read."""
    if kind(eqn) is not None:
        return False
    if eqn.primitive.name in primitives.HIDDEN | primitives.RAGGED:
        return True
    return any(_has_matmul(value) for value in eqn.params.values())


_MAY_MULTIPLY = primitives.PRODUCTS | primitives.HIDDEN | primitives.RAGGED


def _has_matmul(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_has_matmul(v) for v in value)
    jaxpr = getattr(value, "jaxpr", value)
    if not hasattr(jaxpr, "eqns"):
        return False
    return any(e.primitive.name in _MAY_MULTIPLY or any(_has_matmul(v) for v in e.params.values()) for e in jaxpr.eqns)


def rebind(eqn: Eqn, values: Sequence[Any], **changes: Any) -> list[Any]:
    """Returns the results of an equation on other values, its custom derivative rules and parameters kept.

    Inside `lowbit.core.meshes.automatic` an equation of an explicit mesh runs on the automatic one: it names no sharding.
    """
    mesh, traced_on = jax.sharding.get_abstract_mesh(), getattr(eqn.ctx, "cur_abstract_mesh", None)
    with contextlib.ExitStack() as inside:
        inside.enter_context(eqn.ctx.manager)
        if not mesh.empty and AxisType.Explicit not in mesh.axis_types and AxisType.Explicit in _axis_types(traced_on):
            inside.enter_context(jax.sharding.use_abstract_mesh(mesh))
            changes = {**{name: None for name in _SHARDINGS if eqn.params.get(name) is not None}, **changes}
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params({**eqn.params, **changes}))
    return list(out) if eqn.primitive.multiple_results else [out]


def _axis_types(mesh: Any) -> Sequence[AxisType]:
    return () if mesh is None else mesh.axis_types


_SHARDINGS = ("out_sharding", "sharding")
"""Parameters that say how a result is spread."""


def is_literal(var: Any) -> bool:
    """Returns whether a jaxpr atom is a literal."""
    return isinstance(var, jex.Literal)


def jaxpr_of(function: Callable[..., Any], shapes: Sequence[Any]) -> Any:
    """Returns the closed jaxpr of a function as it is written: under `jax.disable_jit` too, where jax writes loops out."""
    with jax.disable_jit(False):
        return jax.make_jaxpr(function)(*shapes)


def scan_counts(eqn: Eqn) -> tuple[int, int]:
    """Returns (constants, carries) of a scan; the other operands are scanned over.

    jax 0.12 describes the operands by a tree of three parts instead of two numbers.
    """
    params = eqn.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    if "ft_in" in params:
        consts, carries, _ = params["ft_in"].unpack()
        return len(consts), len(carries)
    raise TypeError(f"this version of jax describes scan by {sorted(params)}, which lowbit does not know")


def carried(eqn: Eqn, values: Sequence[Any]) -> Sequence[Any]:
    """Returns those of the operands of a scan or while that it carries; none of another equation."""
    if kind(eqn) == "scan":
        consts, carries = scan_counts(eqn)
        return values[consts : consts + carries]
    return values[eqn.params["cond_nconsts"] + eqn.params["body_nconsts"] :] if kind(eqn) == "while" else ()


def scan(eqn: Eqn, body: Callable[..., Any], init: Any, xs: Any) -> Any:
    """Returns `lax.scan` with the options of ``eqn`` over another body."""
    params = eqn.params
    return lax.scan(body, init, xs, length=params["length"], reverse=params["reverse"], unroll=params.get("unroll", 1))


def remat(eqn: Eqn, body: Callable[..., Any]) -> Callable[..., Any]:
    """Returns ``body`` rematerialized with the options of ``eqn``."""
    return jax.checkpoint(body, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"])


def shard_map(eqn: Eqn, body: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Returns ``body`` mapped over the mesh of ``eqn``."""
    params = eqn.params
    return jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=in_specs,
        out_specs=out_specs,
        axis_names=set(manual_axes(eqn)),
        check_vma=params.get("check_vma", True),
    )


def manual_axes(eqn: Eqn) -> tuple[str, ...]:
    """Returns the mesh axes that a shard_map splits over."""
    params = eqn.params
    return tuple(params["newly_manual_axes"] if "newly_manual_axes" in params else params["manual_axes"])


_BETWEEN = ("jax", "jaxlib", "flax", "lowbit", "lowbit_kernels")
"""Packages whose frames lie between a user's program and the equation that it makes."""

_WRAPPERS = ("contextlib", "functools")
"""Modules of Python's own library whose frames do so too."""


def source_line(eqn: Eqn) -> str:
    """Returns where in the user's program an equation was written, ``file.py:12``, or an empty string."""
    frame = _user_frame(eqn)
    return "" if frame is None else f"{os.path.basename(frame[0])}:{frame[1]}"


def _user_frame(eqn: Eqn) -> tuple[str, int] | None:
    traceback = getattr(eqn.source_info, "traceback", None)
    if traceback is None:
        return None
    for frame in traceback.frames:
        if not _is_between(frame.file_name):
            return frame.file_name, frame.line_num
    return None


@functools.cache
def _is_between(file_name: str) -> bool:
    """Returns whether code lies in one of those packages: by where the package is, since a user's folders may have any name.

    A path counts as it is written and with links resolved: an installer may link a package's folder, or its files.
    """
    if file_name.startswith("<"):  # typed in, or made from a string
        return False
    return any(
        path == place or path.startswith(place + os.sep) for path in _spellings(file_name) for place in _places()
    )


@functools.cache
def _places() -> tuple[str, ...]:
    """The folders of the packages and the files of the modules."""
    places: list[str] = []
    for name in (*_BETWEEN, *_WRAPPERS):
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        own = spec.submodule_search_locations or ([spec.origin] if spec.has_location and spec.origin else [])
        places += [spelling for place in own for spelling in _spellings(place)]
    return tuple(dict.fromkeys(places))


def _spellings(path: str) -> tuple[str, str]:
    return os.path.abspath(path), os.path.realpath(path)
