"""The recipe that picks by plan: what comes before ``gptq``, or after it, as the specs of the plan ask for it.

* 8-bit weights with static input ranges per tensor: what is lost is lost by the inputs, whose channels differ in range; half of that
  moves into the weights (`lowbit.rewrites.smooth`), which have bits to spare.
* Else, weights with one scale for all channels: channels are equalized, relu6 with bounds by channel (`lowbit.rewrites.equalize`).
* Else, integers of 3 bits or fewer, or of 4 whose inputs have static ranges: blocks are learned after GPTQ (``brecq``). On ResNet-8 in 4
  bits with 8-bit inputs that takes the logits from 19.3 to 21.0 dB; a block that it does not help stays as GPTQ left it. Where inputs have
  static ranges and the weights are few (`SMALL`), the whole network is one block (``nwq``).
* Else nothing: every channel has its own scale, and the solver takes care of the rest.

What is picked is said in the report.
"""

import math

from lowbit.core.spec import Spec, Tensor
from lowbit.plan.rows import Plan
from lowbit.rewrites.chain import chain
from lowbit.rewrites.equalize import equalize
from lowbit.rewrites.smooth import smooth

from .brecq import recipe as brecq
from .gptq import recipe as gptq
from .nwq import recipe as nwq
from .recipe import Recipe

SMALL = 1 << 18
"""Weights of a network that is learned as a whole: of this order are the networks of MLPerf Tiny."""


def pick(plan: Plan) -> Recipe:
    """Returns what is run on a plan."""
    recipe = gptq()
    weights = [row.weight.spec for row in plan.rows if row.weight is not None and row.weight.spec is not None]
    inputs = [site.spec for row in plan.rows for site in row.sites if not site.is_weight and site.spec is not None]
    static = [spec for spec in inputs if not spec.dynamic and isinstance(spec.granularity, Tensor)]
    if static and all(_has_bits_to_spare(spec) for spec in weights):
        return recipe.named("auto", f"{len(static)} inputs have one static range", rewrite=chain(smooth(0.5)))
    shared = sum(isinstance(spec.granularity, Tensor) for spec in weights)
    if shared:
        return recipe.named("auto", f"{shared} weights have one scale", rewrite=chain(equalize(bounds=True)))
    few = [spec for spec in weights if spec.format.is_integer and spec.format.bits <= (4 if static else 3)]
    if few and static and (total := _size(plan)) <= SMALL:
        return nwq().named("auto", f"{total} weights, of few bits: the whole network is learned")
    if few:
        return brecq().named("auto", f"{len(few)} weights have few bits: blocks are learned")
    return recipe.named("auto", "every channel has its own scales")


def _has_bits_to_spare(spec: Spec) -> bool:
    return spec.format.is_integer and spec.format.bits >= 8


def _size(plan: Plan) -> int:
    """Entries of the weights that are quantized, those of several operations once."""
    sites = {row.weight.key: row.weight for row in plan.rows if row.weight is not None and row.weight.spec is not None}
    return sum(math.prod(site.operand.shape) for site in sites.values())


def recipe() -> Recipe:
    """Returns the recipe ``auto``."""
    return gptq().named("auto", "picked when the plan is known", pick=pick)
