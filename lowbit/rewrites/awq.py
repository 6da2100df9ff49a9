"""AWQ: channels that large inputs read are rounded on a finer grid.

Reference: Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan, Han, AWQ: Activation-aware Weight Quantization for On-Device LLM
Compression and Acceleration, MLSys 2024, https://arxiv.org/abs/2306.00978, Eqs. (4) and (5): rows of the weight are multiplied
by ``s = mean|X|^alpha``, normalised so that ``sqrt(max s * min s) = 1``, with ``alpha`` of a grid in [0, 1] that loses least.

Differs from the paper: the loss is ``sum_j E[x_j^2] |Q(s_j W_j) / s_j - W_j|^2``, the output error with inputs taken as
independent, which needs no second run of the layer; the division is always folded into what makes the channels; the clip search is the
search of scales (`lowbit.solvers.search.searched`, weighted by ``E[x^2]``), which belongs to the grid and not to the model.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.core.quantizer import Quantizer
from lowbit.core.spec import Operand
from lowbit.interpret.bind import bind
from lowbit.plan.rows import Site
from lowbit.program.pairs import Pair

from .given import Given
from .scaling import Model, Scaled, by_channel, reads
from .smooth import wanted


@dataclasses.dataclass(frozen=True)
class Awq(Given):
    """The rewrite.

    Attributes:
        rules: as `lowbit.bind` takes them: how the weights will be quantized; a text is for all.
        steps: exponents tried, evenly spaced in [0, 1]; 0 is one of them, so that nothing loses by the loss above.
    """

    rules: Mapping[str, Any] | str = "w4/g128"
    steps: int = 21

    def __post_init__(self):
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, got {self.steps}")

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Scaled, Any, Any]:
        model = Model(fn, params, state, self.batches, "awq")
        rules = {"**": self.rules} if isinstance(self.rules, str) else self.rules
        plan = bind(fn, rules, params, state, *model.args)
        sites = plan.leaf_sites()
        statistics = model.measure(wanted(list(model.pairs.found)))
        for pair in model.pairs.found:
            names = f"{model.names(pair.makers)} -> {model.names(pair.takers)}"
            takers = [(end, sites[path]) for end in pair.takers if (path := model.paths[end.leaf]) in sites]
            if not takers:
                model.say(f"{names}: left as it is: no rule quantizes what reads the channels")
                continue
            size = np.max(
                [by_channel(end, statistics[reads(end)]["size"], pair.size, np.maximum) for end, _ in takers], 0
            )
            power = np.max(
                [by_channel(end, statistics[reads(end)]["power"], pair.size, np.maximum) for end, _ in takers], 0
            )
            alpha, s, ratio = self._best(model, pair, takers, size, power)
            model.scale(pair, 1.0 / s)
            model.say(f"{names}: {pair.size} channels, alpha {alpha:.2f}, error {ratio:.3f} of that without")
        model.say_blocked()
        return model.done()

    def _best(
        self, model: Model, pair: Pair, takers: list[tuple[Any, Site]], size: np.ndarray, power: np.ndarray
    ) -> tuple[float, np.ndarray, float]:
        losses = []
        for alpha in np.linspace(0.0, 1.0, self.steps):
            s = scales(size, float(alpha))
            loss = 0.0
            for end, site in takers:
                weight = model.values(end.leaf)
                rows = np.where(end.channels < 0, 1.0, s[end.channels])
                worth = np.where(end.channels < 0, 0.0, power[end.channels])
                moved = jnp.asarray((weight * rows).astype(np.float32))
                assert site.quantizer is not None
                kept = np.asarray(_nearest(site.quantizer, site.operand, moved), np.float64)
                loss += float(np.sum(worth * np.square(kept / rows - weight)))
            losses.append((loss, float(alpha), s))
        loss, alpha, s = min(losses, key=lambda item: item[0])
        return alpha, s, loss / losses[0][0] if losses[0][0] > 0 else 1.0


def scales(size: np.ndarray, alpha: float) -> np.ndarray:
    """Returns ``s`` of mean magnitudes: Eq. (5), normalised; channels without inputs keep their scale."""
    is_live = size > 0
    s = np.where(is_live, np.where(is_live, size, 1.0) ** alpha, 1.0)
    live = s[is_live] if is_live.any() else s
    return np.where(is_live, s / np.sqrt(live.max() * live.min()), 1.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _nearest(quantizer: Quantizer, operand: Operand, weight: Any) -> Any:
    state = quantizer.init(operand, {"values": weight}, jax.random.key(0))
    return quantizer.quantize(state, weight, operand).dequantize()


def awq(rules: Mapping[str, Any] | str = "w4/g128", *, steps: int = 21, batches: Any = None) -> Awq:
    """Returns the rewrite that scales rows of weights by what their inputs are worth.

    Args:
        rules: how the weights will be quantized.
        steps: exponents tried.
        batches: what inputs are measured on. None: those of `lowbit.chain`.

    Example:
        >>> params = {"g": jnp.ones(2), "w": jnp.array([[0.4], [1.0]])}
        >>> fn = lambda p, s, x: (jnp.sinh(x) * p["g"]) @ p["w"]
        >>> scaled, new, _ = awq("w3", batches=[(jnp.array([[4.0, 0.1]]),)])(fn, params, {})
        >>> print(scaled)
        awq:
          g -> w: 2 channels, alpha 0.35, error 0.000 of that without
          w: left as it is: result is a result of the model
    """
    return Awq(rules, steps, batches=batches)
