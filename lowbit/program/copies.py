"""What copies of channels go through: any function of single elements. The rules of `lowbit.program.flow` for it, by primitive.

A hidden unit that stands twice gives every element that is made of it alone twice. So a channel may have copies where every equation
on its way works element by element, whatever it computes, or moves whole channels, and a weight contracts it at the end. What is
added, compared or multiplied per channel is copied with it; one number for all channels serves the copies as it is.
"""

from collections.abc import Mapping

import numpy as np

from . import primitives
from .channels import Labels, compact, varying
from .commuting import ranked, spread_axes
from .flow import Flow, Rule, Use
from .read import Equation


def elementwise(flow: Flow, equation: Equation, lead: int) -> Labels:
    """Values that meet have the same channels; parameters are copied with them."""
    out = equation.outs[0]
    data = [value for value in equation.ins if value.is_data]
    why = flow.reason(equation, "meets a value whose channels are others, or none")
    labels = ranked(flow, data[0], out.ndim, lead)
    for value in data[1:]:
        other = ranked(flow, value, out.ndim, lead)
        flow.channels.unify(labels, other, why)
        labels = compact(np.maximum(*np.broadcast_arrays(labels, other)))
    for i, value in enumerate(equation.ins):
        if value.is_data:
            continue
        if value.ndim == 0 or set(varying(labels, lead)) <= spread_axes(flow, value):
            flow.see(value, flow.reason(equation, "reads it for all channels"))
            continue
        use = Use(-1, "bias", equation, i, labels, labels, made=(out, labels))
        text = flow.absorb(use, value, labels, np.zeros([1] * labels.ndim, np.int64), lead)
        if text is not None:
            flow.channels.pin(labels, flow.reason(equation, f"reads a value that cannot be copied with it: it {text}"))
            flow.see(value, why)
    return labels


COPIES: Mapping[str, Rule] = dict.fromkeys(primitives.ELEMENTWISE, elementwise)
"""By primitive: with those of movements and products in `lowbit.program.crossings`."""
