"""Bias correction: the mean that quantization adds to every output channel is taken back by its bias.

Reference: Nagel, van Baalen, Blankevoort, Welling, Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
2019, https://arxiv.org/abs/1906.04721, section 4.2 and appendix B to D. ``E[y~] - E[y] = eps E[x]`` with
``eps = W~ - W``; *empirical*: both means are measured, in program order, so that an operation's correction also takes back what
those before it leave; *analytic*: ``E[x]`` is that of a clipped normal distribution, known from the norm before.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from lowbit.core.paths import flatten
from lowbit.interpret.simulate import simulate
from lowbit.interpret.state import QState
from lowbit.packed import arguments
from lowbit.plan.rows import Plan
from lowbit.program import primitives
from lowbit.program.commuting import COMMUTING
from lowbit.program.compat import jaxpr_of
from lowbit.program.crossings import CROSSINGS
from lowbit.program.flow import INLINED, Flow, Use
from lowbit.program.read import read
from lowbit.program.taps import Place, tapped


@dataclasses.dataclass(frozen=True)
class Corrected:
    """What was corrected. ``print`` shows it.

    Attributes:
        moved: ``(operation's path, bias's path, largest correction)``.
        left: ``(operation's path, why)``.
    """

    moved: tuple[tuple[str, str, float], ...]
    left: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{path}: {bias} moved by up to {most:.3g}" for path, bias, most in self.moved]
        return "\n".join([*lines, *(f"{path}: left as it is: {why}" for path, why in self.left)])


@dataclasses.dataclass(frozen=True)
class _Bias:
    """A bias that follows an operation: where its sum is made, and which output channel every entry of it is added to."""

    path: str
    leaf: int
    place: Place
    sign: float
    channels: Any
    made: Any


@dataclasses.dataclass(frozen=True)
class _Sums:
    """A function that returns the mean by channel where biases were added; hashable, so that `simulate` is cached."""

    fn: Callable[..., Any]
    places: tuple[tuple[Place, tuple[int, ...]], ...]

    def __call__(self, params: Any, *args: Any, **kwargs: Any) -> list[Array]:
        leaves = jax.tree.leaves((params, args, kwargs))
        program = read(_flat(self.fn, params, args, kwargs), inlined=("jit",))
        _, values = tapped(program, leaves, [place for place, _ in self.places])
        return [
            jnp.mean(x.astype(jnp.float32), tuple(i for i in range(x.ndim) if i not in kept), keepdims=True)
            for x, (_, kept) in zip(values, self.places, strict=True)
        ]


def _flat(fn: Callable[..., Any], params: Any, args: Any, kwargs: Any) -> Any:
    leaves, tree = jax.tree.flatten((params, tuple(args), dict(kwargs)))

    def flat(*leaves: Any) -> list[Any]:
        params, args, kwargs = jax.tree.unflatten(tree, leaves)
        return jax.tree.leaves(fn(params, *args, **kwargs))

    return jaxpr_of(flat, [jax.ShapeDtypeStruct(jnp.shape(x), x.dtype) for x in leaves])


def bias_correction(
    fn: Callable[..., Any],
    plan: Plan,
    params: Any,
    qstate: QState,
    batches: Iterable[Any],
    *,
    rounded: Any = None,
    is_sequential: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, Corrected]:
    """Returns parameters whose biases take back the mean that quantization adds, and what was corrected.

    Every operation with a quantized weight or input, and a bias of its own added along its output channels, is corrected so
    that over ``batches`` the mean of each channel is that of the float model. Weights are left as they are.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`.
        params: float parameters.
        qstate: from `lowbit.calibrate`.
        batches: a list of argument tuples of ``fn(params, *args)``, of one length each.
        rounded: parameters whose weights hold the values that a solver chose, if they are not the nearest ones: they are on
            their grids, and are found there again. Their biases are not read.
        is_sequential: correct one operation after the other, each with those before it corrected; else all at once, which runs
            the model twice and not once more for every operation.
        progress: called with the operations done, and how many there are.

    Returns:
        ``params'`` (``rounded`` with other biases, where that is given), and a report that prints.

    Raises:
        ValueError: if ``batches`` is empty.

    Example:
        >>> from lowbit.calibrate.fold import calibrate
        >>> from lowbit.interpret.bind import bind
        >>> params = {"w": jnp.array([[0.6], [1.0]]), "b": jnp.zeros(1)}
        >>> fn, x = lambda p, x: x @ p["w"] + p["b"], jnp.array([[1.0, 2.0], [3.0, 2.0]])
        >>> plan = bind(fn, {"**": "w2"}, params, x)
        >>> corrected, report = bias_correction(fn, plan, params, calibrate(fn, plan, params, [(x,)]), [(x,)])
        >>> print(report)
        w: b moved by up to 0.8
    """
    arguments.check(fn=fn, plan=plan, params=params, qstate=qstate)
    calls = [arguments.batch_of(batch, i) for i, batch in enumerate(batches)]
    if not calls:
        raise ValueError("batches is empty: means need at least one batch")
    biases, left = _biases(fn, plan, params, calls[0])
    sums = _Sums(fn, tuple((bias.place, _kept(bias.made)) for bias in biases))
    want = _means(jax.jit(sums), calls, params)
    quantized = simulate(sums, plan)
    values, tree = jax.tree.flatten(params if rounded is None else rounded)
    for bias in biases:
        values[bias.leaf] = jax.tree.leaves(params)[bias.leaf]
    steps = [[i] for i in range(len(biases))] if is_sequential else [list(range(len(biases)))]
    moved = []
    for step in steps:
        now = _means(lambda p, *args: quantized(p, qstate, *args), calls, jax.tree.unflatten(tree, values))
        for i in step:
            values[biases[i].leaf], most = _moved(biases[i], values[biases[i].leaf], want[i] - now[i])
            moved.append((biases[i].path, flatten(params)[0][biases[i].leaf], most))
        if progress is not None:
            progress(len(moved), len(biases))
    return jax.tree.unflatten(tree, values), Corrected(tuple(moved), tuple(left))


@dataclasses.dataclass(frozen=True)
class Behind:
    """The bias behind an operation with a weight.

    Attributes:
        path: of the bias.
        sign: -1 where it is subtracted.
        entries: the channel of every entry of the bias.
        made: in the weight's coordinates, the channel that every entry makes; axes along which it is one have length 1.
    """

    path: str
    sign: float
    entries: Any
    made: Any

    def moved(self, value: Any, channels: np.ndarray, shift: np.ndarray) -> tuple[Any, float]:
        """Returns the bias with a shift of its channels added, and the largest change; an entry of several takes their mean.

        Args:
            value: the bias.
            channels: the channel of every entry of ``shift``.
            shift: by output of the weight.
        """
        return _added(value, self.entries, channels, shift, self.sign)


def behind(fn: Callable[..., Any], plan: Plan, params: Any, args: tuple[Any, ...]) -> dict[str, Behind]:
    """Returns the bias behind every quantized operation that has one to itself, by the operation's path.

    Only a bias that is added to the operation's results as they are, moved at most or beside other terms of a sum, an entry to
    each channel: what it is shifted by is then what the results are shifted by. Behind a relu, a factor or a sum it is not.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`.
        params: of which only shapes matter.
        args: of one call, without parameters.
    """
    flow, uses, _ = _followed(fn, plan, params, args)
    paths, leaves, _ = flatten(params)
    readers = [use.leaf for use in flow.uses]
    sole = {}
    for path, (use, bias) in uses.items():
        is_sole = readers.count(bias.leaf) == readers.count(use.leaf) == 1 and bias.leaf not in flow.opaque
        if is_sole and bias.makes.size <= leaves[bias.leaf].size and _is_straight(use, bias):
            sole[path] = Behind(paths[bias.leaf], _sign(bias), bias.makes, use.makes)
    return sole


def _means(run: Callable[..., Any], calls: list[Any], params: Any) -> list[np.ndarray]:
    sums = [[np.asarray(x, np.float64) for x in run(params, *args)] for args in calls]
    return [np.mean(each, axis=0) for each in zip(*sums, strict=True)]


def _kept(labels: np.ndarray) -> tuple[int, ...]:
    return tuple(i for i, n in enumerate(labels.shape) if n > 1)


def _moved(bias: _Bias, value: Any, off: np.ndarray) -> tuple[Any, float]:
    """A bias less what its channels are off by."""
    return _added(value, bias.channels, np.broadcast_to(bias.made, off.shape), off, bias.sign)


def _added(value: Any, entries: Any, channels: np.ndarray, off: np.ndarray, sign: float) -> tuple[Any, float]:
    """A bias and what is to be added to its channels; an entry of several channels takes their mean."""
    distinct, inverse = np.unique(channels.reshape(-1), return_inverse=True)
    by_label = np.bincount(inverse, off.reshape(-1)) / np.bincount(inverse)
    own = np.broadcast_to(entries, np.broadcast_shapes(entries.shape, value.shape))
    at = np.minimum(np.searchsorted(distinct, own), distinct.size - 1)
    change = np.where(distinct[at] == own, by_label[at], 0.0)
    place = np.broadcast_to(np.arange(value.size).reshape(value.shape), own.shape)
    change = (np.bincount(place.reshape(-1), change.reshape(-1)) / np.bincount(place.reshape(-1))).reshape(value.shape)
    new = np.asarray(value).astype(np.float64) + sign * change
    return jnp.asarray(new.astype(np.float32)).astype(value.dtype), float(np.abs(change).max())


def _biases(fn: Any, plan: Plan, params: Any, args: tuple[Any, ...]) -> tuple[list[_Bias], list[tuple[str, str]]]:
    """The bias of every quantized operation, in program order, and the operations without one."""
    _, followed, left = _followed(fn, plan, params, args)
    biases = []
    for path, (_, bias) in followed.items():
        assert bias.made is not None
        biases.append(_Bias(path, bias.leaf, Place(bias.equation.address), _sign(bias), bias.makes, bias.made[1]))
    return biases, left


def _sign(bias: Use) -> float:
    return -1.0 if bias.equation.name == "sub" and bias.operand == 1 else 1.0


def _is_straight(use: Use, bias: Use) -> bool:
    """Whether a bias is added, once, to what a weight makes itself: through movements and sums alone."""
    if bias.equation.name == "sub" and bias.operand == 0:
        return False
    result, reached, todo = use.equation.outs[0], 0, [bias.equation.ins[1 - bias.operand]]
    while todo:
        value = todo.pop()
        source = value.source
        if value is result:
            reached += 1
        elif source is not None and source.name in ("add", "add_any"):
            todo += source.ins
        elif source is not None and (source.name == "sub" or source.name in _STRAIGHT):
            todo.append(source.ins[0])
    return reached == 1


_STRAIGHT = primitives.SAME | primitives.VARYING | primitives.CASTS | primitives.SHAPED
"""Every result elsewhere, none of them another or gone."""


def _followed(
    fn: Any, plan: Plan, params: Any, args: tuple[Any, ...]
) -> tuple[Flow, dict[str, tuple[Use, Use]], list[tuple[str, str]]]:
    """The weight and the bias of every quantized operation, in program order, and the operations without one."""
    count = len(jax.tree.leaves(params))
    program = read(_flat(fn, params, args, {}), fixed=count, inlined=INLINED)
    flow = Flow(program, {**COMMUTING, **CROSSINGS}, has_bounds=False, gains=frozenset())
    weights = {u.equation.address: u for u in flow.uses if u.kind == "weight"}
    uses: dict[str, tuple[Use, Use]] = {}
    left = []
    for row in plan.quantized:
        if row.operation is None or row.weight is None:
            continue
        use = weights.get(row.operation.address)
        bias = None if use is None else _bias(flow, use)
        if use is None or bias is None:
            left.append((row.path, "no parameter is added along its output channels"))
        else:
            uses[row.path] = use, bias
    return flow, uses, left


def _bias(flow: Flow, use: Use) -> Use | None:
    """The first parameter that is added to channels that a weight makes, before anything makes others of them."""
    assert use.made is not None
    own = np.unique(use.made[1])
    own = own[own > 0]
    for other in flow.uses:
        if (
            other.kind == "bias"
            and other.leaf >= 0
            and other.equation.name in ("add", "sub")
            and other.made is not None
        ):
            theirs = np.unique(other.made[1])
            if own.size and np.isin(own, theirs).all() and np.isin(own, np.unique(other.makes)).all():
                return other
    return None


def clipped_normal_mean(
    mean: Float[Array, "..."], deviation: Float[Array, "..."], low: float = 0.0, high: float = math.inf
) -> Float[Array, "..."]:
    """Returns ``E[clip(x, low, high)]`` of normal ``x``: what relu (0, inf) or relu6 (0, 6) leaves of a norm's output.

    ``a Phi(a') + b (1 - Phi(b')) + mean (Phi(b') - Phi(a')) + deviation (phi(a') - phi(b'))``, bounds standardised. Appendix C.

    Args:
        mean: of ``x``: the norm's bias.
        deviation: of ``x``: the magnitude of its gain; zero is allowed.
        low: lower bound.
        high: upper bound.

    Example:
        >>> float(clipped_normal_mean(jnp.float32(0), jnp.float32(1))).__round__(4)  # 1 / sqrt(2 pi)
        0.3989
    """
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    safe = jnp.where(deviation == 0, 1.0, deviation)
    below, above = (low - mean) / safe, (high - mean) / safe
    start = 0.0 if math.isinf(low) else low * norm.cdf(below)
    end = 0.0 if math.isinf(high) else high * norm.cdf(-above)
    inside = mean * (norm.cdf(above) - norm.cdf(below)) + safe * (norm.pdf(below) - norm.pdf(above))
    return jnp.where(deviation == 0, jnp.clip(mean, low, high), start + end + inside)


def analytic_correction(
    weight: Float[Array, "in out"], rounded: Float[Array, "in out"], mean: Float[Array, " in"]
) -> Float[Array, " out"]:
    """Returns what to add to a bias, without running the quantized model: ``-(W~ - W)^T E[x]``. Float32.

    Args:
        weight: float, as a matrix (`lowbit.core.matrix.MatrixView`).
        rounded: the same on its grid.
        mean: of every input: measured, or from the norm before by `clipped_normal_mean`.

    Example:
        >>> analytic_correction(jnp.array([[0.5], [1.0]]), jnp.array([[1.0], [1.0]]), jnp.array([2.0, 2.0])).tolist()
        [-1.0]
    """
    return -jnp.sum((rounded - weight).astype(jnp.float32) * mean[:, None], 0)
