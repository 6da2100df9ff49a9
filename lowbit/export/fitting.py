"""A budget of flash that the compiled program keeps, code and all.

A budget counts weights and scales. Code, biases and multipliers come on top, and how many bytes they are is known once a program is
compiled: so what a program takes besides its weights is taken off the budget, and bits are chosen again until one fits.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.allocate.budget import Budget
from lowbit.allocate.choose import Allocation, allocation
from lowbit.allocate.scores import Scores
from lowbit.calibrate.fold import calibrate
from lowbit.interpret.packing import pack
from lowbit.plan.rows import Plan

from .bundle import export
from .c.run import TOOLCHAINS, run_cases

ROUNDS = 10


class Binary(NamedTuple):
    """A program that was compiled on the way.

    Attributes:
        weights: bytes that its weights and scales are counted with.
        flash: bytes of the whole program.
        ram: bytes of static memory and stack.
    """

    weights: int
    flash: int
    ram: int


def fitting(
    fn: Callable[..., Any],
    plan: Plan,
    params: Any,
    batches: Sequence[tuple[Any, ...]],
    scores: Scores,
    *,
    args: tuple[Any, ...],
    budget: Budget,
    target: str,
    progress: Callable[[Binary], None] | None = None,
) -> tuple[Allocation, tuple[Binary, ...]]:
    """Returns the allocation whose compiled program is within ``budget``'s bytes of flash, and every program on the way to it.

    Args:
        fn: the float function, ``fn(params, *args)``.
        plan: full-integer, from `lowbit.bind`.
        params: float parameters.
        batches: argument tuples that calibrate.
        scores: of `lowbit.sensitivity` for this plan.
        args: arguments that a program is compiled for, such as one sample of a batch.
        budget: of `lowbit.budget`, with ``flash=``; other limits hold as always.
        target: that a C compiler makes programs for, such as ``cortex-m4``.
        progress: called with every program.

    Raises:
        ValueError: for a budget without flash, a plan that is not full-integer, a target that takes no C, or where no program
            fits after ten rounds or the least one does not: with the bytes that are over.
    """
    if budget.flash is None:
        raise ValueError(f"budget must limit flash, got {budget}")
    if target not in TOOLCHAINS:
        raise ValueError(f"target must be one that takes C: {', '.join(TOOLCHAINS)}, got {target!r}")
    if not plan.is_full_integer:
        raise ValueError("plan must be full-integer: bind with integer=True")
    left, programs = float(budget.flash), list[Binary]()
    for _ in range(ROUNDS):
        try:
            best = allocation(plan, scores, budget=dataclasses.replace(budget, flash=left), target=target)
        except ValueError as error:
            if not programs:
                raise
            over = programs[-1].flash - budget.flash
            raise ValueError(
                f"the smallest program that was compiled is {over:,.0f} bytes over {budget.flash:,}: {error}"
            ) from error
        flash, ram = _measured(fn, best.plan, params, batches, args, target)
        programs.append(Binary(int(best.lines[0].costs["flash"]), flash, ram))
        if progress is not None:
            progress(programs[-1])
        if flash <= budget.flash:
            return best, tuple(programs)
        weights = programs[-1].weights
        left = min(budget.flash - (flash - weights), weights - 1)  # weights become fewer with every round
    raise ValueError(
        f"no program within {budget.flash:,} bytes after {ROUNDS} rounds: the last takes {programs[-1].flash:,}"
    )


def _measured(
    fn: Callable[..., Any],
    plan: Plan,
    params: Any,
    batches: Sequence[tuple[Any, ...]],
    args: tuple[Any, ...],
    target: str,
) -> tuple[int, int]:
    """Bytes of flash and of memory of a plan's program."""
    qparams = pack(plan, params, calibrate(fn, plan, params, batches))
    with tempfile.TemporaryDirectory() as place:
        bundle = export(fn, plan, qparams, args, Path(place) / "bundle", integer_io=True, targets=(target,))
        inputs, _ = bundle.vectors()
        ran = run_cases(bundle, [inputs], target)
    return ran.flash_bytes, ran.ram_bytes
