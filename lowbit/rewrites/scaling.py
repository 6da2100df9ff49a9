"""What rewrites by factors of channels share: the model read with its pairs, its parameters scaled, what it says of it.

A rewrite of this kind changes parameters (and running statistics) alone, so that the function it returns is the one it was
given; only where a written bound of a clip moves, the function has other constants.
"""

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.packed import arguments
from lowbit.program.constants import full_value
from lowbit.program.flow import INLINED, Rule
from lowbit.program.pairs import End, Pair, Pairs, pairs
from lowbit.program.read import Equation
from lowbit.program.taps import Place, tapped

from .traced import Traced, trace_model

Batches = Iterable[Any] | Callable[[], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class Bound:
    """A written bound of a clip that was scaled.

    Attributes:
        key: its name among the new parameters.
        place: the operand.
        primitive: of the equation, which is checked.
    """

    key: str
    place: Place
    primitive: str


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A function whose parameters were scaled: ``fn(params, state, *args)``, and what was done. ``print`` shows it.

    Where bounds of clips moved, its parameters are ``{"params": ..., "bounds": {name: array}}``, else those of ``fn``.

    Attributes:
        fn: the function that was rewritten.
        title: which rewrite.
        lines: what it did, and what it left as it is and why.
        bounds: those that moved.
    """

    fn: Callable[..., Any]
    title: str
    lines: tuple[str, ...]
    bounds: tuple[Bound, ...] = ()

    takes_state: ClassVar[bool] = True  # the first argument after the parameters is no data

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function that was rewritten: what `inspect.signature` shows."""
        return self.fn

    def __call__(self, params: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.bounds:
            return self.fn(params, state, *args, **kwargs)
        traced = trace_model(self.fn, params["params"], state, args, kwargs)
        by_address = {e.address: e for e in _everywhere(traced)}
        for bound in self.bounds:
            path = by_address.get(bound.place.address)
            if path is None or path.name != bound.primitive:
                raise ValueError(
                    f"{self.title}: for these arguments the function has no {bound.primitive} where one was scaled; rewrite "
                    f"with arguments of the shapes and flags it is called with"
                )
        leaves = jax.tree.leaves((params["params"], state, args, kwargs))
        moved = {bound.place: params["bounds"][bound.key] for bound in self.bounds}
        outs, _ = tapped(traced.program, leaves, (), moved)
        return jax.tree.unflatten(traced.out_tree, outs)

    def __str__(self) -> str:
        before = f"{self.fn}\n" if isinstance(self.fn, Scaled) else ""
        return before + "\n".join([f"{self.title}:", *(f"  {line}" for line in self.lines)])


def _everywhere(traced: Traced) -> list[Equation]:
    equations: list[Equation] = []
    todo = list(traced.equations)
    while todo:
        equation = todo.pop()
        equations.append(equation)
        if equation.call is not None:
            todo += [e for body in equation.bodies for e in body.equations]
    return equations


class Model:
    """A model, its parameters as arrays that can be scaled, and its pairs.

    Args:
        fn: ``fn(params, state, *args)``.
        params: float parameters.
        state: what else it takes.
        batches: tuples of ``args``: the first is what it is read with.
        title: of the rewrite, for messages.
        has_bounds: whether written bounds of clips may move.
        rules: of `lowbit.program.pairs.pairs`, where what goes through a program is something else than a factor.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Any,
        state: Any,
        batches: Batches | None,
        title: str,
        *,
        has_bounds: bool = False,
        rules: Mapping[str, Rule] = types.MappingProxyType({}),
    ):
        if batches is None:
            raise ValueError(
                f"{title} has no batches: give {title}(batches=[(x,)]), tuples of the arguments after params and state, or "
                f"lowbit.chain(..., batches=)"
            )
        self.fn, self.title, self.batches = fn, title, batches
        self.params, self.state = params, state
        self.args = first_batch(batches, title)
        self.traced = trace_model(fn, params, state, self.args, {})
        self.program = trace_model(fn, params, state, self.args, {}, inlined=INLINED).program
        self.pairs: Pairs = pairs(self.program, has_bounds=has_bounds, rules=rules)
        self.leaves, self.tree = jax.tree.flatten((params, state))
        self.paths = [*self.traced.paths, *(f"state/{path}" for path in self.traced.state_paths)]
        self.factors: dict[int, np.ndarray] = {}
        self.bounds: dict[tuple[tuple[int, ...], int], np.ndarray] = {}
        self.lines: list[str] = []

    def magnitudes(self, leaf: int) -> np.ndarray:
        """Returns what the entries of a parameter are worth now, float64."""
        return np.abs(self.values(leaf))

    def values(self, leaf: int) -> np.ndarray:
        """Returns a parameter as it is scaled now, float64."""
        values = np.asarray(self.leaves[leaf]).astype(np.float64)
        return values * self.factors[leaf] if leaf in self.factors else values

    def scale(self, pair: Pair, factors: np.ndarray) -> None:
        """Multiplies what makes channels by factors, and divides what takes them back."""
        for end in (*pair.makers, *pair.scaled):
            self._multiply(end, factors)
        for end in pair.takers:
            self._multiply(end, 1.0 / factors)

    def _multiply(self, end: End, factors: np.ndarray) -> None:
        by_entry = np.where(end.channels < 0, 1.0, factors[end.channels])
        if end.leaf < 0:
            key = end.equation.address, end.operand
            self.bounds[key] = self.bounds.get(key, np.ones(())) * by_entry
        else:
            self.factors[end.leaf] = self.factors.get(end.leaf, np.ones(())) * by_entry

    def names(self, ends: Sequence[End]) -> str:
        """Returns the paths of parameters, for a report."""
        return ", ".join(dict.fromkeys(self.paths[end.leaf] for end in ends if end.leaf >= 0))

    def say(self, line: str) -> None:
        """Adds a line to the report."""
        self.lines.append(line)

    def say_blocked(self, kinds: Sequence[str] = ("weight", "table", "gain")) -> None:
        """Adds what has no legal pair, and which equation stands in the way."""
        for blocked in self.pairs.blocked:
            if blocked.kind in kinds:
                self.say(f"{self.paths[blocked.leaf]}: left as it is: {blocked.reason}")

    def done(self) -> tuple[Scaled, Any, Any]:
        """Returns ``fn', params', state'``: each parameter multiplied once, in float32, in its own dtype."""
        values = list(self.leaves)
        for leaf, factors in self.factors.items():
            wide = np.asarray(values[leaf]).astype(np.float64) * factors
            values[leaf] = jnp.asarray(wide.astype(np.float32)).astype(values[leaf].dtype)
        params, state = jax.tree.unflatten(self.tree, values)
        bounds, arrays = [], {}
        for (address, operand), factors in self.bounds.items():
            equation = next(e for e in _all(self.program.equations) if e.address == address)
            key = f"clip_{len(bounds)}"
            bounds.append(Bound(key, Place(address, operand, is_operand=True), equation.name))
            number = np.asarray(full_value(equation.ins[operand]))
            arrays[key] = jnp.asarray((factors * number).astype(np.float32))
        if bounds:
            params = {"params": params, "bounds": arrays}
        lines = tuple(self.lines) or ("nothing here is left to change, so all is left as it is",)
        return Scaled(self.fn, self.title, lines, tuple(bounds)), params, state

    def measure(
        self, wanted: Mapping[Place, tuple[int, ...]], names: Mapping[Place, str] | None = None
    ) -> dict[Place, dict[str, np.ndarray]]:
        """Returns statistics of inner values over all batches: ``largest`` magnitude, ``low``, ``mean``, ``size`` (mean magnitude) and ``power``.

        Args:
            wanted: the places, and the axes that are kept; the others have length 1.
            names: the weights whose inputs they are, where no pair says so.

        Raises:
            ValueError: for NaN or infinity, naming the batch.
        """
        places = list(wanted)

        @jax.jit
        def step(leaves: Any, args: Any) -> list[dict[str, Any]]:
            program = trace_model(self.fn, self.params, self.state, args, {}).program
            _, values = tapped(program, [*leaves, *jax.tree.leaves((args, {}))], places)
            return [_summed(x, wanted[place]) for place, x in zip(places, values, strict=True)]

        paths = {reads(end): self.paths[end.leaf] for pair in self.pairs.found for end in pair.takers}
        paths |= names or {}
        total: list[dict[str, np.ndarray]] = []
        leaves = jax.tree.leaves((self.params, self.state))
        for number, args in enumerate(all_batches(self.batches)):
            now = jax.device_get(step(leaves, args))
            for place, state in zip(places, now, strict=True):
                if not np.all(np.isfinite(state["power"])):
                    where = f"the input of {paths[place]!r}" if place in paths else f"equation {place.address}"
                    raise ValueError(
                        f"{self.title}: {where} held NaN or infinity in the calibration data, first in batch {number} (counted "
                        f"from 0): check the batches"
                    )
            total = now if not total else [_merged(a, b) for a, b in zip(total, now, strict=True)]
        sums = ("mean", "size", "power")
        return {
            place: {k: x / state["count"] if k in sums else x for k, x in state.items()}
            for place, state in zip(places, total, strict=True)
        }


def _all(equations: Sequence[Equation]) -> list[Equation]:
    return [e for outer in equations for e in (outer, *(_all(outer.loop.equations) if outer.loop is not None else ()))]


def _summed(x: Any, kept: tuple[int, ...]) -> dict[str, Any]:
    axes = tuple(i for i in range(x.ndim) if i not in kept)
    x = x.astype(jnp.float32)
    count = jnp.asarray(np.prod([x.shape[i] for i in axes], initial=1.0), jnp.float32)
    how = {"axis": axes, "keepdims": True}
    return {
        "largest": jnp.max(jnp.abs(x), **how),
        "low": jnp.min(x, **how),
        "mean": jnp.sum(x, **how),
        "size": jnp.sum(jnp.abs(x), **how),
        "power": jnp.sum(x * x, **how),
        "count": count,
    }


def _merged(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    how: dict[str, Any] = {"largest": np.maximum, "low": np.minimum}
    return {k: how.get(k, np.add)(np.asarray(a[k], np.float64), np.asarray(b[k], np.float64)) for k in a}


def all_batches(batches: Batches) -> Iterable[tuple[Any, ...]]:
    """Yields tuples of arguments, from a list or from a function that returns an iterator."""
    for number, batch in enumerate(batches() if callable(batches) else batches):
        yield arguments.batch_of(batch, number)


def first_batch(batches: Batches, title: str) -> tuple[Any, ...]:
    """Returns the first batch.

    Raises:
        ValueError: where there is none.
        TypeError: for an iterator, which can be gone through only once.
    """
    if not callable(batches) and iter(batches) is batches:
        raise TypeError(
            f"{title}: batches must be a list, or a function that returns an iterator; an iterator is used up"
        )
    batch = next(iter(all_batches(batches)), None)
    if batch is None:
        raise ValueError(f"{title}: batches is empty: it needs at least one batch")
    return batch


def reads(end: End) -> Place:
    """Returns the place of the data that what takes factors back reads."""
    return Place(end.equation.address, 1 - end.operand, is_operand=True)


def by_channel(end: End, values: np.ndarray, size: int, how: Any) -> np.ndarray:
    """Returns a statistic of the data that an end reads, by channel, folded by ``how`` (``np.maximum``); 0 where there is none."""
    channels = np.broadcast_to(end.value_channels, np.broadcast_shapes(end.value_channels.shape, values.shape))
    maxima = np.zeros(size + 1)
    how.at(maxima, channels.reshape(-1), np.broadcast_to(values, channels.shape).reshape(-1).astype(np.float64))
    return maxima[:-1]


def kept_axes(end: End) -> tuple[int, ...]:
    """Returns the axes of the data that an end reads, along which its channels differ."""
    return tuple(i for i, n in enumerate(end.value_channels.shape) if n > 1)
