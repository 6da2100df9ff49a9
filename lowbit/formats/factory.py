"""The end of every factory of quantizers: from a rule text to the two of them."""

import dataclasses
from collections.abc import Callable

from lowbit.core.quantizer import Quantizer, Quantizers
from lowbit.core.spec import Spec

from .integer import Integer
from .lookup import specs

Made = Callable[[Spec], Quantizer]


def quantizers(
    text: str, name: str, *, weight: Made | None = None, input: Made | None = None, both: Made | None = None
) -> Quantizers:
    """Returns the quantizers of a rule text.

    Args:
        text: such as ``"w4,a4"``.
        name: of the method, for errors.
        weight: makes the quantizer of the ``w`` part; None where the method has none for weights.
        input: of the ``a`` part.
        both: in place of the two, where they are made alike.

    Raises:
        ValueError: for a part that the method has no quantizer for, or what makes them refuses.
    """
    makers = {"weight": weight or both, "input": input or both}
    of_text = dict(zip(makers, specs(text), strict=True))
    have = [role for role, make in makers.items() if make is not None]
    given = [role for role, spec in of_text.items() if spec is not None]
    if len(have) == 1 and given != have:
        raise ValueError(f"{name} is for {have[0]}s, got {text!r}; combine with Quantizers(weight=..., input=...)")
    by_site = {
        role: make(spec) for role, make in makers.items() if make is not None and (spec := of_text[role]) is not None
    }
    return Quantizers(by_site.get("weight"), by_site.get("input"))


def learned(spec: Spec, name: str, *, is_input: bool = False) -> Spec:
    """Returns ``spec`` in `int8`, which holds the codes of as few bits while widths or levels are learned.

    Args:
        spec: of plain signed integers: what is learned begins with their bits.
        name: of the method, for errors.
        is_input: unsigned ones may be asked for too, and are held in `uint8`.

    Raises:
        ValueError: for other formats, or an input with a zero point.

    Example:
        >>> learned(specs("w4/g32")[0], "hgq").text
        'int8/g32/sym'
    """
    is_signed = spec.format.is_signed or not is_input
    if spec.format.bits > 8 or spec.format != Integer(spec.format.bits, signed=is_signed):
        kinds = "signed integers" if not is_input else "integers"
        raise ValueError(f"{name} begins with {kinds} of up to 8 bits, got {spec.format.name}")
    if is_input and not spec.symmetric:
        raise ValueError(f"{name} has no zero points, got {spec.text}: a6/sym, or auint6/sym of what is never negative")
    return dataclasses.replace(spec, format=Integer(8, signed=is_signed))
