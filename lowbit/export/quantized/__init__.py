"""The quantized form: StableHLO whose tensors say their scales, ``!quant.uniform``.

Weights are constants of a quantized type in 2, 4 or 8 bits; dots and convolutions take quantized operands and make int32
sums of a quantized type; ``uniform_quantize`` brings those back to a grid. The integers and scales are those of the served
form. Where an input meets a weight, its zero point is in the integer bias, not in the operand's type: see
`lowbit.export.quantized.products`.

How a rescaled sum is rounded is the compiler's: StableHLO's own lowering (``stablehlo-legalize-quant-to-math``) computes
``round(clamp(float32(sum) * float32(scale / scale') + zero))``, ties to even, in float32.
"""

from collections.abc import Callable
from typing import Any

from lowbit.export.codes import program
from lowbit.export.forms import Lowered

from . import full_integer, ordinary
from .operations import NAMES


def quantized_function(lowered: Lowered) -> Callable[..., list[Any]]:
    """Returns the function of the flat inputs whose trace is the quantized form, quantized arrays as their integers.

    Raises:
        ValueError: where the form cannot hold the model.
    """
    return program(lowered, full_integer.results, ordinary.results, kept=NAMES)
