"""Outlier channel splitting: hidden units with the largest weights stand several times, each with a share of these.

Reference: Zhao, Hu, Dotzel, De Sa, Zhang, Improving Neural Network Quantization without Retraining using Outlier Channel
Splitting, ICML 2019, https://arxiv.org/abs/1901.09504, sections 3.2 and 3.3: a weight that reads a unit is halved and the unit
stands twice; the share that goes to each copy is moved by a fraction of a step, so that the codes of all copies add up to the code of
the whole (section 3.3, quantization-aware splitting; here by Hermite's identity for any number of copies).

Differs from the paper: a unit has as many copies at once as bring its weights under one bound, the least that the allowed number of
units reaches, which is the best there is; units are found by data flow, through any function of single elements; the inputs of the
network are not split, and neither is what a norm or a residual sum reads, since copies would change it. Modules that check the shapes
of their parameters (linen, haiku) cannot take more units: they are left as they are, with what they say. Pure functions, equinox and nnx
can.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lowbit.program.copies import COPIES
from lowbit.program.pairs import End, Pair

from .given import Given
from .scaling import Model, Scaled


@dataclasses.dataclass(frozen=True)
class Split(Given):
    """The rewrite. Parameters change their shapes; the function is the one that was given, so it must not know them by heart.

    Attributes:
        share: of a layer's units that may be added, at most.
        least: the largest weight must fall by this factor, at least, or the layer is left as it is.
        bits: of the codes that shares of copies add up in.
    """

    share: float = 0.02
    least: float = 2.0
    bits: int = 8

    def __post_init__(self):
        if not 0.0 < self.share <= 1.0 or self.least < 1.0 or self.bits < 2:
            raise ValueError(
                f"split needs 0 < share <= 1, least >= 1 and bits >= 2, got {self.share}, {self.least} and {self.bits}"
            )

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Scaled, Any, Any]:
        model = Model(fn, params, state, self.batches, "split", rules=COPIES)
        before = fn(params, state, *model.args)
        for pair in model.pairs.found:
            leaves, said = self._split(pair, model.leaves)
            if leaves is not None and (
                reason := _differs(fn, jax.tree.unflatten(model.tree, leaves), model.args, before)
            ):
                leaves, said = None, f"left as it is: {reason}"
            model.leaves = model.leaves if leaves is None else leaves
            model.say(f"{model.names(pair.makers)} -> {model.names(pair.takers)}: {said}")
        model.say_blocked(("weight",))
        return model.done()

    def _split(self, pair: Pair, leaves: list[Any]) -> tuple[list[Any] | None, str]:
        """The parameters with units of a pair standing several times, or None where none do; and what is said of it."""
        copied, shared = (*pair.makers, *pair.scaled), pair.takers
        if {end.leaf for end in copied} & {end.leaf for end in shared}:
            return None, "left as it is: one parameter makes these units and reads them"
        axes = {id(end): _axis(end, np.shape(leaves[end.leaf])) for end in (*copied, *shared)}
        if any(axis is None for axis in axes.values()):
            return None, "left as it is: a parameter has one of its entries, or several of its axes, for several units"
        largest = np.zeros(pair.size)
        for end in shared:
            values = np.abs(np.asarray(leaves[end.leaf], np.float64))
            of_unit = end.largest(values, pair.size)
            largest = np.maximum(largest, of_unit / max(np.sqrt(np.mean(values**2)), 1e-30))  # of weights alike in size
        counts = copies(largest, int(self.share * pair.size))
        bound = np.max(largest / counts)
        if bound * self.least > np.max(largest):
            return (
                None,
                f"left as it is: its largest weight would fall by {np.max(largest) / max(bound, 1e-30):.2g} alone",
            )
        new = list(leaves)
        for end in {end.leaf: end for end in (*copied, *shared)}.values():
            own = _counts(end, counts)
            values = np.repeat(np.asarray(new[end.leaf]), own, axis=axes[id(end)])
            if end in shared:
                values = _shares(values.astype(np.float64), own, axes[id(end)] or 0, self.bits)
            new[end.leaf] = jnp.asarray(values.astype(np.float32)).astype(new[end.leaf].dtype)
        added = int(np.sum(counts) - pair.size)
        return new, f"{pair.size} units, {added} added, the largest weight {np.max(largest) / bound:.3g} times smaller"


def copies(largest: Float[np.ndarray, " units"], budget: int) -> Int[np.ndarray, " units"]:
    """Returns how often each unit stands so that the largest share of any is least, with at most ``budget`` more units.

    Args:
        largest: the largest weight of every unit, zero or positive.
        budget: units that may be added.

    Example:
        >>> copies(np.array([8.0, 1.0, 3.0, 0.0]), 4).tolist()
        [4, 1, 2, 1]
    """
    counts = np.ones(len(largest), np.int64)
    for _ in range(
        budget
    ):  # the one with the largest share gets another: what is best for n is part of what is best for n + 1
        first = int(np.argmax(largest / counts))
        if largest[first] == 0:
            break
        counts[first] += 1
    bound = np.max(largest / counts)
    return np.maximum(np.ceil(largest / bound - 1e-9), 1).astype(np.int64) if bound > 0 else np.ones_like(counts)


def _axis(end: End, shape: tuple[int, ...]) -> int | None:
    """The one axis of a parameter along which units lie, each at one place of it at most; None where it is otherwise."""
    axes = [i for i, n in enumerate(end.channels.shape) if n > 1]
    if (
        end.leaf < 0
        or len(axes) != 1
        or end.channels.ndim != len(shape)
        or end.channels.shape[axes[0]] != shape[axes[0]]
    ):
        return None
    units = end.channels.reshape(-1)
    units = units[units >= 0]
    return axes[0] if len(np.unique(units)) == len(units) else None


def _counts(end: End, counts: Int[np.ndarray, " units"]) -> Int[np.ndarray, " places"]:
    units = end.channels.reshape(-1)
    return np.where(units >= 0, counts[units], 1)


def _shares(values: np.ndarray, counts: np.ndarray, axis: int, bits: int) -> np.ndarray:
    """Weights of units that stand several times, as shares that add up to them, a fraction of a step apart.

    Copy ``j`` of ``n`` gets ``w / n + step (j - (n - 1) / 2) / n``: with ``y = w / step`` the codes of all are
    ``sum_j floor((y + 1/2 + j) / n) = floor(y + 1/2)``, that of the whole.
    """
    shape = [-1 if i == axis else 1 for i in range(values.ndim)]
    n = np.repeat(counts, counts).astype(np.float64).reshape(shape)
    j = np.concatenate([np.arange(count) for count in counts]).astype(np.float64).reshape(shape)
    step = np.max(np.abs(values / n)) / (2.0 ** (bits - 1) - 1)
    return values / n + step * (j - (n - 1) / 2) / n


def _differs(fn: Callable[..., Any], model: tuple[Any, Any], args: tuple[Any, ...], before: Any) -> str | None:
    """Why parameters with copies are not the same function, or None: it may have shapes written into it."""
    try:
        after = fn(*model, *args)
    except Exception as error:  # noqa: BLE001 - whatever a function says of shapes that it does not expect
        return f"with more units the function says: {str(error).splitlines()[0][:120]}"
    if jax.tree.structure(after) != jax.tree.structure(before):
        return "with more units the function returns another tree"
    for x, y in zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (after, before)), strict=True):
        if x.shape != y.shape or not np.allclose(
            x, y, rtol=1e-4, atol=1e-5 * max(float(np.max(np.abs(y), initial=0)), 1e-30)
        ):
            return "with more units the function returns something else"
    return None


def split(*, share: float = 0.02, least: float = 2.0, bits: int = 8, batches: Any = None) -> Split:
    """Returns the rewrite that splits units whose weights stand out, for scales that all of a layer share.

    Args:
        share: of a layer's units that may be added, at most.
        least: the largest weight must fall by this factor, at least, or the layer is left as it is.
        bits: of the codes that shares of copies add up in.
        batches: one tuple of example arguments in a list is enough. None: those of `lowbit.chain`.

    Example:
        >>> params = {"a": jnp.ones((1, 4)), "b": jnp.array([[8.0], [1.0], [0.5], [0.25]])}
        >>> fn = lambda p, s, x: jax.nn.gelu(x @ p["a"]) @ p["b"]
        >>> rewritten, params, _ = split(share=0.5, batches=[(jnp.ones((1, 1)),)])(fn, params, {})
        >>> params["a"].shape, [round(x, 1) for x in params["b"][:, 0].tolist()]
        ((1, 6), [2.7, 2.7, 2.7, 1.0, 0.5, 0.2])
        >>> print(rewritten)
        split:
          a -> b: 4 units, 2 added, the largest weight 3 times smaller
          b: left as it is: result is a result of the model
    """
    return Split(share, least, bits, batches=batches)
