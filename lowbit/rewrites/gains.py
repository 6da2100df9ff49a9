"""Gains of norms folded into the weights that read them: what rotations of the residual stream need, and one product less.

Reference: Ashkboos et al., SliceGPT, ICLR 2024, https://arxiv.org/abs/2401.15024, section 3.1: ``norm(x) diag(g) W`` is
``norm(x) (diag(g) W)``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from .given import Given
from .scaling import Model, Scaled


@dataclasses.dataclass(frozen=True)
class FoldGains(Given):
    """The rewrite: every gain that can be becomes ones."""

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Scaled, Any, Any]:
        model = Model(fn, params, state, self.batches, "fold_gains")
        for pair in model.pairs.found:
            if any(end.kind != "gain" for end in pair.makers):
                continue
            names = f"{model.names(pair.makers)} -> {model.names(pair.takers)}"
            gains = _gains(model, pair)
            if gains is None:
                model.say(f"{names}: left as it is: several gains make one channel and differ")
                continue
            is_kept = (gains == 0) | ((gains < 0) if not pair.is_linear else np.zeros(gains.shape, bool))
            model.scale(pair, 1.0 / np.where(is_kept, 1.0, gains))
            kept = f", {int(is_kept.sum())} of them left: zero, or negative before a relu" if is_kept.any() else ""
            model.say(f"{names}: {pair.size} gains folded{kept}")
        model.say_blocked(("gain",))
        return model.done()


def _gains(model: Model, pair: Any) -> np.ndarray | None:
    """The gain of every channel, where all entries of it are one."""
    gains = np.full(pair.size, np.nan)
    for end in pair.makers:
        leaf = model.values(end.leaf)
        channels = np.broadcast_to(end.channels, leaf.shape)
        for channel, value in zip(channels[channels >= 0].tolist(), leaf[channels >= 0].tolist(), strict=True):
            if np.isnan(gains[channel]):
                gains[channel] = value
            elif gains[channel] != value:
                return None
    return gains


def fold_gains(*, batches: Any = None) -> FoldGains:
    """Returns the rewrite that folds gains of norms into the weights that read them.

    A gain of zero stays, with its channel; a negative one stays where a relu or the like follows.

    Args:
        batches: one tuple of example arguments in a list is enough. None: those of `lowbit.chain`.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"g": jnp.array([2.0, -3.0]), "w": jnp.ones((2, 1))}
        >>> _, params, _ = fold_gains(batches=[(jnp.ones((1, 2)),)])(
        ...     lambda p, s, x: (jnp.tanh(x) * p["g"]) @ p["w"], params, {}
        ... )
        >>> params["g"].tolist(), params["w"].tolist()
        ([1.0, 1.0], [[2.0], [-3.0]])
    """
    return FoldGains(batches=batches)
