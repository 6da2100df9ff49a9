"""Cross-layer equalization: channels exchange range between the weights that make and read them.

Reference: Nagel, van Baalen, Blankevoort, Welling, Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
2019, https://arxiv.org/abs/1906.04721, section 4.1, Eqs. (7) to (11). ``r1_i = max |W1_i|`` over the output channel ``i`` of
one weight, ``r2_i`` over the input channel of the next; the factor ``s_i = sqrt(r1_i / r2_i)`` divides the first and multiplies the
second, after which both ranges are ``sqrt(r1_i r2_i)``.

Differs from the paper: channels that several weights make or read (residual sums, concatenations, heads, layers of a scan) are
equalized as well, with the largest of their ranges; relu6 keeps its function exactly where ``bounds=True``, as a clip with a bound
by channel, while the paper replaces it by relu.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit.program.pairs import Pair

from .given import Given
from .scaling import Model, Scaled


@dataclasses.dataclass(frozen=True)
class Equalize(Given):
    """The rewrite.

    Attributes:
        bounds: whether clips between weights get a bound by channel; else they stand in the way.
        sweeps: over all pairs, at most.
        tolerance: ends the sweeps where no factor moves by more.
    """

    bounds: bool = False
    sweeps: int = 100
    tolerance: float = 1e-6

    def __post_init__(self):
        if self.sweeps < 1 or self.tolerance < 0:
            raise ValueError(f"equalize needs sweeps >= 1 and tolerance >= 0, got {self.sweeps} and {self.tolerance}")

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Scaled, Any, Any]:
        model = Model(fn, params, state, self.batches, "equalize", has_bounds=self.bounds)
        chosen = [p for p in model.pairs.found if all(end.kind != "gain" for end in p.makers)]
        moved = {id(p): np.ones(p.size) for p in chosen}
        for _ in range(self.sweeps):
            largest = 0.0
            for pair in chosen:
                factors = _factors(model, pair)
                model.scale(pair, factors)
                moved[id(pair)] *= factors
                largest = max(largest, float(np.abs(np.log(factors)).max()))
            if largest <= self.tolerance:
                break
        for pair in model.pairs.found:
            names = f"{model.names(pair.makers)} -> {model.names(pair.takers)}"
            if id(pair) in moved:
                own_factors = moved[id(pair)]
                model.say(f"{names}: {pair.size} channels, factors {own_factors.min():.3g} to {own_factors.max():.3g}")
            else:
                model.say(f"{names}: left as it is: a gain makes the channels, which has no range to give")
        model.say_blocked(("weight", "table"))
        return model.done()


def ranges(model: Model, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``r1, r2`` of every channel of a pair."""
    both = []
    for ends in (pair.makers, pair.takers):
        largest = [end.largest(model.magnitudes(end.leaf), pair.size) for end in ends]
        both.append(np.max(largest, axis=0))
    return both[0], both[1]


def _factors(model: Model, pair: Pair) -> np.ndarray:
    """What the makers are multiplied by: 1 / s. A channel that is zero on one side keeps its range."""
    first, second = ranges(model, pair)
    is_live = (first > 0) & (second > 0)
    return np.where(is_live, np.sqrt(np.where(is_live, second, 1.0) / np.where(is_live, first, 1.0)), 1.0)  # Eq. (11)


def equalize(*, bounds: bool = False, batches: Any = None, sweeps: int = 100) -> Equalize:
    """Returns the rewrite that equalizes the ranges of channels across weights.

    Fold batch norms before (`lowbit.rewrites.batch_norm.fold`).

    Args:
        bounds: whether clips, such as relu6, get a bound by channel. The function is then a `Scaled` with parameters
            ``{"params": ..., "bounds": ...}``.
        batches: one tuple of example arguments in a list is enough: only shapes matter. None: those of `lowbit.chain`.
        sweeps: over all pairs, at most.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"a": jnp.array([[8.0, 0.5]]), "b": jnp.array([[2.0], [2.0]])}
        >>> fn = lambda p, s, x: jax.nn.relu(x @ p["a"]) @ p["b"]
        >>> scaled, params, _ = equalize(batches=[(jnp.ones((1, 1)),)])(fn, params, {})
        >>> params["a"].tolist(), params["b"].tolist()
        ([[4.0, 1.0]], [[4.0], [1.0]])
        >>> print(scaled)
        equalize:
          a -> b: 2 channels, factors 0.5 to 2
          b: left as it is: result is a result of the model
    """
    return Equalize(bounds, sweeps, batches=batches)
