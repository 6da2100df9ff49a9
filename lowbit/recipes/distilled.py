"""`centered`, then distillation: the float model's results are taught to the rounded one, on the calibration inputs, without labels.

Reference: NVIDIA, Quantization-Aware Distillation, 2026, https://arxiv.org/abs/2601.20088 (the float model as the only teacher);
Li et al., BRECQ, ICLR 2021, https://arxiv.org/abs/2102.05426 (reconstruction after rounding layer by layer; here the block is
all of the network).

Every entry moves in steps of its own grid, straight through the rounding, from where the solver left it. The last batch is
held back: what is returned is what was best there, so that it is never worse than the start where the start is measured.

Differs from the papers: the loss is the squared error of the results over their power, not a divergence of classes, because the
results may be anything; scales and input ranges stay as they were solved.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowbit.core import blocks as block_ops
from lowbit.core.paths import flatten
from lowbit.interpret.simulate import simulate
from lowbit.interpret.state import get, quantizer_of

from .centered import recipe as centered
from .recipe import Finish, Finished, Recipe

_OTHERS = 0.05
"""What a step is to parameters without a grid: a share of their mean magnitude."""


@dataclasses.dataclass(frozen=True)
class Distill(Finish):
    """Adam on the squared error of the results.

    Attributes:
        steps: of Adam, one batch each.
        rate: its learning rate at the start, in steps of an entry's grid; it falls to zero as a cosine.
        every: after how many steps the batch that is held back is looked at.
    """

    steps: int = 400
    rate: float = 0.02
    every: int = 25

    def __post_init__(self):
        if self.steps < 1 or self.rate <= 0 or self.every < 1:
            raise ValueError(f"steps, rate and every must be positive, got {self.steps}, {self.rate} and {self.every}")

    def __call__(self, given: Finished) -> tuple[Any, str]:
        calls = list(given.calls())
        teacher = jax.jit(given.fn)
        wanted = [teacher(given.params, *args) for args in calls]
        train, run = simulate(given.fn, given.plan, train=True), simulate(given.fn, given.plan)
        units = _units(given)
        adam = optax.adam(optax.cosine_decay_schedule(self.rate, self.steps))

        def loss(params: Any, args: Any, want: Any) -> Any:
            return _off(train(params, given.qstate, *args)[0], want)

        @jax.jit
        def step(params: Any, inner: Any, args: Any, want: Any) -> Any:
            slope = jax.grad(loss)(params, args, want)
            with jax.numpy_dtype_promotion("standard"):  # optax mixes its step counts with floats
                change, inner = adam.update(slope, inner)
            return jax.tree.map(lambda x, d, u: x + (d * u).astype(x.dtype), params, change, units), inner

        held = [-1] if len(calls) > 1 else [0]
        some = len(calls) - 1 if len(calls) > 1 else 1

        def error(params: Any) -> float:
            return float(sum(_off(run(params, given.qstate, *calls[i]), wanted[i]) for i in held))

        params, inner = given.solved, adam.init(given.solved)
        start = least = error(params)
        best = params
        for i in range(self.steps):
            params, inner = step(params, inner, calls[i % some], wanted[i % some])
            if (i + 1) % self.every == 0 or i + 1 == self.steps:
                given.say("distilled", i + 1, self.steps)
                now = error(params)
                if now < least:
                    least, best = now, params
        decibels = [10 * np.log10(1 / max(x, 1e-30)) for x in (start, least)]
        return (
            best,
            f"distilled: {decibels[0]:.1f} dB of the results to {decibels[1]:.1f} on the batch that was held back",
        )


def _off(got: Any, want: Any) -> Any:
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    off = sum(jnp.sum(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32))) for a, b in pairs)
    return off / jnp.maximum(sum(jnp.sum(jnp.square(b.astype(jnp.float32))) for _, b in pairs), 1e-30)


def _units(given: Finished) -> Any:
    """What a step is to every entry: its scale on a grid, else a share of the mean magnitude."""
    sites = {path: site for path, site in given.plan.leaf_sites().items() if site.spec is not None}
    paths, leaves, tree = flatten(given.solved)
    found = []
    for path, leaf in zip(paths, leaves, strict=True):
        site = sites.get(path)
        if site is None:
            found.append(jnp.float32(_OTHERS) * jnp.mean(jnp.abs(leaf.astype(jnp.float32))))
            continue
        q = quantizer_of(site).quantize(get(given.qstate, site.key, site.role), leaf, site.operand)
        blocks = q.spec.granularity.blocks(site.operand)
        found.append(jnp.abs(block_ops.spread(q.scale_values, leaf.shape, blocks)))
    return jax.tree.unflatten(tree, found)


def recipe() -> Recipe:
    """Returns the recipe ``distilled``."""
    return centered().named("distilled", "", finish=Distill())
