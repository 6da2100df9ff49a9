"""Milliseconds of every operation with every candidate, on the kernel that `lowbit.execute` would run: measured, never guessed.

What was measured is kept in the table of this machine (`lowbit.allocate.timetable`), which `lowbit bench operations` fills and prints.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowbit.calibrate.fold import init
from lowbit.core.quantizer import Quantizers
from lowbit.interpret.bind import bind
from lowbit.interpret.execute import execute
from lowbit.interpret.packing import pack
from lowbit.observe.replay import replay
from lowbit.packed.native import prepare
from lowbit.plan.rows import Row

from .candidates import Candidate
from .timetable import Entry, Timetable

_ADDRESS = " at 0x"
"""In the text of a parameter that has none of its own: it names an object of this process, so another must not find it."""


def measured(
    rows: Sequence[Row],
    candidates: Sequence[Candidate],
    *,
    repeats: int = 10,
    again: bool = False,
    progress: Callable[[int], None] | None = None,
) -> dict[str, dict[str, float]]:
    """Returns ``{path: {candidate: milliseconds}}``: every operation alone, at the shapes it was bound with.

    Operations alike are measured once, and kept in this machine's table, where the next call finds them. The least of
    ``repeats`` runs counts.

    Args:
        rows: of a plan from `lowbit.bind`.
        candidates: of `lowbit.allocate.candidates.candidates_of`.
        repeats: runs of each.
        again: measure what the table holds too, and replace it.
        progress: called with the number of operations done.
    """
    table = Timetable()
    known: dict[str, float] = {}
    times: dict[str, dict[str, float]] = {}
    for count, row in enumerate(rows):
        times[row.path] = {}
        for candidate in candidates:
            if row.path not in candidate.fits:
                continue
            now = next(each for each in candidate.plan.rows if each.path == row.path)
            text, entry = _described(now)
            if text not in known:
                kept = None if again else table.lookup(text)
                known[text] = _milliseconds(now, repeats) if kept is None else kept
                if kept is None and _ADDRESS not in text:
                    table.keep(text, Entry(**entry, ms=known[text]))
            times[row.path][candidate.name] = known[text] * math.prod(row.stack)
        if progress is not None:
            progress(count + 1)
    return times


def _described(row: Row) -> tuple[str, dict[str, Any]]:
    """All that decides how long an operation takes, as text; and what a reader of the table wants of it."""
    eqn = row.operation.eqn
    shapes = [f"{v.aval.dtype}{list(v.aval.shape)}" for v in eqn.invars]
    quantizers = [site.method or "float" for site in row.sites]
    operation = f"{eqn.primitive.name} {' '.join(shapes)}"
    return f"{operation} {eqn.params} {quantizers}", {"operation": operation, "quantizers": quantizers}


def _milliseconds(row: Row, repeats: int) -> float:
    op = row.operation
    index = op.weight
    keys = jax.random.split(jax.random.key(0), len(op.eqn.invars))

    def array(i: int) -> Any:
        aval = op.eqn.invars[i].aval
        if not jnp.issubdtype(aval.dtype, jnp.floating):
            return jnp.zeros(aval.shape, aval.dtype)
        return jax.random.normal(keys[i], aval.shape, jnp.float32).astype(aval.dtype)

    rest = [array(i) for i in range(len(op.eqn.invars)) if i != index]

    def fn(params: Any, *args: Any) -> Any:
        other = args if op.is_lookup else args[0]
        return replay(row, params["w"], other) if index == 0 else replay(row, other, params["w"])

    weight = next((site.quantizer for site in row.sites if site.is_weight), None)
    other = next((site.quantizer for site in row.sites if not site.is_weight), None)
    params = {"w": array(index)}
    plan = bind(fn, {"**": Quantizers(weight, other)}, params, *rest)
    qparams = prepare(plan, pack(plan, params, init(fn, plan, params, *rest)))
    run = execute(fn, plan)
    jax.block_until_ready(run(qparams, *rest))
    least = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run(qparams, *rest))
        least = min(least, time.perf_counter() - start)
    return 1e3 * least
