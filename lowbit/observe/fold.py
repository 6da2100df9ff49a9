"""The loop over batches that every observation is: one batch in memory at a time, checked, with progress."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from lowbit.core.checks import is_traced
from lowbit.interpret.observe import names
from lowbit.packed import arguments

from .resumed import Resumed

Step = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""``(states or None, args, kwargs) -> states``"""


def fold(
    step: Step,
    fn: Callable[..., Any],
    params: Any,
    batches: Iterable[Any],
    kwargs: Mapping[str, Any] | None,
    progress: Callable[[int], None] | None,
    *,
    resumed: Resumed,
    ignored: str = "",
) -> Any:
    """Returns the states after all batches.

    Args:
        step: from the states before a batch (None before the first) to those after it.
        fn: the function, for errors.
        params: its parameters, for errors.
        batches: argument tuples.
        kwargs: keyword arguments, the same for all.
        progress: called with the number of batches done.
        resumed: what keeps the states.
        ignored: a role whose states do not say whether they are finite.

    Raises:
        ValueError: if there is no batch, or NaN or infinity in one, by name and number; or other batches than the states that
            were kept are of.
        TypeError: if a batch is not a tuple of arguments.
    """
    states, count = None, 0
    for count, given in enumerate(arguments.iterated(batches), 1):
        batch, keywords = arguments.batch_of(given, count - 1), dict(kwargs or {})
        arguments.check_call(fn, params, batch, keywords, f"batches[{count - 1}]")
        if count == 1 or not resumed.is_done(count - 1, batch):
            is_first, states = states is None, step(states, batch, keywords)
            check_batch(states, count - 1, ignored)
            states = resumed.first((batch, keywords), states) if is_first else states
            resumed.after(count, states)
        if progress is not None:
            progress(count)
    if states is None:
        raise ValueError("batches is empty: input ranges need at least one batch")
    resumed.check_end(count)
    resumed.keep(states)
    return states


def check_batch(states: Mapping[str, Any], batch: int, ignored: str = "") -> None:
    """Raises where an operand has held NaN or infinity. Not under jit.

    Raises:
        ValueError: naming the operand and the first such batch.
    """
    flags = {
        f"the {role} of {path!r}": each["not_finite"][0]
        for path, role, each in names(states)
        if role != ignored and "not_finite" in each
    }
    for name, flag in jax.device_get({name: flag for name, flag in flags.items() if not is_traced(flag)}).items():
        if np.any(flag):
            raise ValueError(
                f"{name} held NaN or infinity in the calibration data, first in batch {batch} (counted from 0): it has no "
                f"range; check the batches, or give the operation the rule 'keep'"
            )


def unseen(states: Mapping[str, Any]) -> list[str]:
    """Returns the operands that statistics are wanted of and no batch had a value for, in a layer at least. Not under jit."""
    return _without(states, 1)


def nothing_but_zero(states: Mapping[str, Any]) -> list[str]:
    """Returns the operands, weights apart, that statistics are wanted of and that were 0 in all batches, in a layer at least. Not under jit."""
    inputs = {path: {role: x for role, x in roles.items() if role != "weight"} for path, roles in states.items()}
    return _without(inputs, 2)


def _without(states: Mapping[str, Any], part: int) -> list[str]:
    """The operands of which a part of `lowbit.core.statistics.NotFinite` is 0 in a layer at least."""
    parts = {
        f"the {role} of {path!r}": each["not_finite"][part]
        for path, role, each in names(states)
        if "not_finite" in each and len(each) > 1  # a range of its own at run time needs no value before
    }
    known = {name: x for name, x in parts.items() if not is_traced(x)}
    return [name for name, x in jax.device_get(known).items() if not np.all(x)]
