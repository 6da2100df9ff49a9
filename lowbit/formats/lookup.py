"""From rule text to typed specs. Formats are found, not listed: a module here with a ``named`` function is one."""

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType

from lowbit.core import text as rule_text
from lowbit.core.spec import Channel, Format, Spec, Tensor
from lowbit.core.storage import Plain
from lowbit.core.words import storage_named


@functools.cache
def _modules() -> tuple[ModuleType, ...]:
    import lowbit.formats as package

    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(importlib.import_module(f"{package.__name__}.{name}") for name in names if name != "lookup")


@functools.cache
def families() -> tuple[Callable[[str], Format | None], ...]:
    """Returns the ``named`` function of every module of `lowbit.formats` that has one."""
    return tuple(module.named for module in _modules() if hasattr(module, "named"))


@functools.cache
def format_words() -> tuple[str, ...]:
    """Returns the word of every named format and block-scaled shorthand, from the modules' ``FORMATS`` and ``SHORTHANDS``.

    Example:
        >>> {"int4", "nf4", "mxfp4"} <= set(format_words())
        True
    """
    words = [f.name for module in _modules() for f in getattr(module, "FORMATS", ())]
    return (*words, *(word for module in _modules() for word in getattr(module, "SHORTHANDS", ())))


def format_named(name: str) -> Format:
    """Returns the format of this name.

    Raises:
        ValueError: if no family knows it, or it is out of range.
    """
    for named in families():
        if (named_format := named(name)) is not None:
            return named_format
    close = rule_text.nearest_words(name, format_words())
    raise ValueError(f"unknown format {name!r}; nearest: {', '.join(close)}; `lowbit formats` lists all")


def is_format(word: str) -> bool:
    """Returns whether ``word`` names a format or a block-scaled shorthand.

    Example:
        >>> is_format("mxfp4"), is_format("int9"), is_format("nf5")
        (True, False, False)
    """
    try:
        spec_from_text(word, is_weight=True)
    except ValueError:
        return False
    return True


def _expanded(part: rule_text.Part) -> tuple[rule_text.Part, bool]:
    """Returns ``part`` with a shorthand written out, and whether it was one."""
    expanders = [module.shorthand for module in _modules() if hasattr(module, "shorthand")]
    try:
        full = next((spec for expand in expanders if (spec := expand(part.format)) is not None), None)
    except ValueError as error:
        raise rule_text.error_at(part.text, part.position, str(error)) from None
    if full is None:
        return part, False
    (meant,) = rule_text.parse("w" + full)
    fixed = [f for f in part.flags if f not in ("sym", "dynamic")]
    if part.granularity is not None or part.scale is not None or fixed:
        raise rule_text.error_at(
            part.text,
            part.position,
            f"{part.format} fixes its block and scale ({full}); write those out to change them",
        )
    flags = tuple(dict.fromkeys((*part.flags, *meant.flags)))
    spec = dataclasses.replace(part, format=meant.format, flags=flags, granularity=meant.granularity, scale=meant.scale)
    return spec, True


def _format_of(part: rule_text.Part) -> Format:
    try:
        if "narrow" not in part.flags or part.format.endswith("n"):
            return format_named(part.format)
        if not format_named(part.format).is_integer or part.format == "ternary":
            raise ValueError(f"/narrow is for integer formats, got {part.format}")
        return format_named(part.format + "n")
    except ValueError as error:
        raise rule_text.error_at(part.text, part.position, str(error)) from None


def spec_of(part: rule_text.Part) -> Spec:
    """Returns the spec of one part of a rule text, with the defaults of its operand.

    Weights: symmetric, per output channel. Inputs: affine, per tensor; symmetric where the format is not an integer
    or has 16 bits; ``/dynamic`` computes one scale per row at run time, symmetric. Block-scaled shorthands
    (``amxfp4``) are dynamic for inputs, as the formats mean it.
    """
    is_weight = part.letter == "w"
    part, is_block_scaled = _expanded(part)
    numbers = _format_of(part)
    dynamic = "dynamic" in part.flags or (is_block_scaled and not is_weight)
    if dynamic and is_weight:
        raise rule_text.error_at(part.text, part.position, "/dynamic is for inputs; a weight's scale is stored")
    is_plain = numbers.is_integer and 1 < numbers.bits <= 8 and numbers.name != "ternary"
    default_symmetric = is_weight or dynamic or not is_plain
    symmetric = "sym" in part.flags or (default_symmetric and "affine" not in part.flags)
    default = Channel() if is_weight or dynamic else Tensor()
    granularity = default if part.granularity is None else part.granularity
    try:
        if "signed" in part.flags and not is_weight:
            raise ValueError("/signed is for weights; inputs have zero points for that")
        scale = Plain() if part.scale is None else storage_named(part.scale, format_named)
        if not is_weight and not dynamic and not granularity.is_one_per_array:
            raise ValueError(
                f"a calibrated input has one scale, got /{granularity.text}, whose scales depend on the batch; "
                "use /tensor, or /dynamic"
            )
        return Spec(numbers, granularity, symmetric, scale, dynamic, "signed" in part.flags)
    except ValueError as error:
        raise rule_text.error_at(part.text, part.position, str(error)) from None


def specs(text: str) -> tuple[Spec | None, Spec | None]:
    """Returns the weight's and the inputs' spec of a rule text; None where the text has no such part.

    Example:
        >>> weight, inputs = specs("w4/g32,a8")
        >>> weight.text, inputs.text
        ('int4/g32/sym', 'int8/tensor/affine')
    """
    by_letter = {part.letter: spec_of(part) for part in rule_text.parse(text)}
    return by_letter.get("w"), by_letter.get("a")


def spec_from_text(text: str, *, is_weight: bool) -> Spec:
    """Returns the spec that `Spec.text` wrote."""
    (part,) = rule_text.parse(("w" if is_weight else "a") + text)
    return spec_of(part)
