"""The call that is exported: which leaves of the arguments are inputs, which are constants, and what they are called."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.keywords import explicit

EXAMPLE = 3
"""The length of a symbolic dimension in test vectors."""


@dataclasses.dataclass(frozen=True)
class Call:
    """A call with some arguments fixed.

    Attributes:
        args: all arguments, examples included.
        constant: positions of the fixed ones.
        kwargs: keyword arguments, fixed.
        leaves: flat example inputs.
        names: of the inputs, in order.
        tree: structure of the arguments that are not fixed.
    """

    args: tuple[Any, ...]
    constant: frozenset[int]
    kwargs: dict[str, Any]
    leaves: list[Any]
    names: list[str]
    tree: Any

    @property
    def is_symbolic(self) -> bool:
        """Whether a dimension of an input is a symbol."""
        return any(not isinstance(n, int) for leaf in self.leaves for n in leaf.shape)

    @property
    def constants(self) -> Any:
        """The fixed arguments."""
        return [self.args[i] for i in sorted(self.constant)], self.kwargs

    def arguments(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """Returns all arguments, with these leaves for the inputs."""
        moving = iter(jax.tree.unflatten(self.tree, leaves))
        return tuple(arg if i in self.constant else next(moving) for i, arg in enumerate(self.args))

    def vectors(self) -> list[jax.Array]:
        """Returns test inputs: the example's values, standard normals (integers: 0 or 1) where it has none."""
        rng = np.random.default_rng(0)

        def drawn(x: Any) -> jax.Array:
            if not isinstance(x, jax.ShapeDtypeStruct):
                return jnp.asarray(x)
            is_float = jnp.issubdtype(x.dtype, jnp.floating)
            shape = [n if isinstance(n, int) else EXAMPLE for n in x.shape]
            return jnp.asarray(rng.normal(size=shape) if is_float else rng.integers(0, 2, shape), x.dtype)

        return [drawn(x) for x in self.leaves]


def read_call(fn: Any, args: Sequence[Any], constant_args: Sequence[int], kwargs: dict[str, Any]) -> Call:
    """Returns the call.

    Raises:
        TypeError: if an input is no array, or a constant has no values.
        ValueError: if a position does not exist, or no input is left.
    """
    for position in constant_args:
        if not (isinstance(position, int) and 0 <= position < len(args)):
            raise ValueError(f"constant_args must be positions in args, 0 to {len(args) - 1}, got {position!r}")
    constant = frozenset(constant_args)
    for leaf in jax.tree.leaves(([args[i] for i in constant], kwargs)):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError("a constant argument needs values, got a ShapeDtypeStruct; see constant_args")
    moving = [arg for i, arg in enumerate(args) if i not in constant]
    entries, tree = jax.tree_util.tree_flatten_with_path(moving)
    if not entries:
        raise ValueError("no input is left: args holds constants only; pass the data too, as in (state, x)")
    words = [word for i, word in enumerate(_argument_names(fn, len(args))) if i not in constant]
    names = []
    for (position, *keys), leaf in entries:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(
                f"input {words[position.idx]!r} must be an array, got {type(leaf).__name__}; fix it by constant_args, or in fn"
            )
        if jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise TypeError(
                f"input {words[position.idx]!r} is a random key ({leaf.dtype}), which a module cannot take; fix it by "
                f"constant_args, or take jax.random.key_data(key) and wrap it in fn"
            )
        for n in leaf.shape:
            if not (isinstance(n, int) or str(n).isidentifier()):
                raise ValueError(f"a dimension of {words[position.idx]!r} must be a number or one symbol, got {n}")
        names.append("/".join([words[position.idx], *(_name(key) for key in keys)]))
    return Call(tuple(args), constant, kwargs, [leaf for _, leaf in entries], names, tree)


def _name(key: Any) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def _argument_names(fn: Any, count: int) -> list[str]:
    """The names of the arguments after the parameters, where the function says them."""
    try:
        known = [
            p.name
            for p in inspect.signature(fn).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ][1:]
    except (TypeError, ValueError):
        known = []
    return [known[i] if i < len(known) else f"arg{i}" for i in range(count)]


def output_names(tree: Any) -> list[str]:
    """Returns a name per flat output: its path, or ``y`` for a single one."""
    entries = jax.tree_util.tree_flatten_with_path(tree)[0]
    return ["/".join(_name(key) for key in keys) or "y" for keys, _ in entries]


def described(names: Sequence[str], shapes: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns one JSON entry per array: name, shape (a symbolic dimension is text), dtype."""
    return [
        {"name": name, "shape": [n if isinstance(n, int) else str(n) for n in x.shape], "dtype": str(x.dtype)}
        for name, x in zip(names, shapes, strict=True)
    ]


def specs(entries: Sequence[Mapping[str, Any]], scope: jax.export.SymbolicScope) -> list[jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes that entries describe, symbols in ``scope``."""
    return [
        jax.ShapeDtypeStruct(
            jax.export.symbolic_shape(", ".join(map(str, entry["shape"])), scope=scope), jnp.dtype(entry["dtype"])
        )
        for entry in entries
    ]


_NOISE, _DRAWS = 2.0**-18, 4


def conditioning(run: Callable[..., Any], call: Call, inputs: Sequence[Any], outputs: Sequence[Any]) -> list[float]:
    """Returns, per output, how far a compiler that rounds otherwise may move it.

    The largest change in four draws of relative noise of 2**-18 on the float inputs, 64 times what one float32 operation
    may round: an error of that size anywhere flips the same roundings to a grid. At least 64 roundings of the largest
    value, for inputs without floats.

    Args:
        run: ``run(*args, kwargs=...)``, the served model.
        call: the exported call.
        inputs: flat test inputs.
        outputs: flat results for them.
    """
    rng = np.random.default_rng(1)
    floor = 2.0**-18
    limits = [floor * _largest(np.asarray(y, np.float64)) for y in outputs]
    if not any(jnp.issubdtype(x.dtype, jnp.floating) for x in inputs):
        return limits
    for _ in range(_DRAWS):
        moved = [
            jnp.asarray(np.asarray(x, np.float64) * (1.0 + _NOISE * rng.uniform(-1.0, 1.0, x.shape)), x.dtype)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else x
            for x in inputs
        ]
        got = jax.tree.leaves(run(*call.arguments(moved), **explicit(call.kwargs)))
        with np.errstate(invalid="ignore"):
            change = [np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in zip(got, outputs, strict=True)]
        limits = [max(limit, _largest(c)) for limit, c in zip(limits, change, strict=True)]
    return limits


def _largest(x: np.ndarray) -> float:
    """The largest magnitude that is finite: NaN and infinities are compared as they are, and give no limit."""
    return float(np.max(np.abs(x), where=np.isfinite(x), initial=0.0))
