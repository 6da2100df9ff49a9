"""Bits chosen for the operations of a piece, by scores that all pieces of a run share, or by evolution after them."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax

import lowbit as lb
from lowbit.allocate.budget import Budget
from lowbit.allocate.choose import allocation
from lowbit.allocate.evolution import evolve
from lowbit.export.fitting import fitting
from lowbit.plan.rows import Plan

from .experiment import Allocation
from .folder import write_json
from .job import Job

SCORED = "scored"
"""Of a run: scores of candidates, by content."""
ALLOCATED = "allocated.json"
"""Of a piece: the candidate of every operation, and the scores that chose it."""


def allocated(
    job: Job,
    asked: Allocation,
    name: str,
    fn: Callable[..., Any],
    plan: Plan,
    params: Any,
    batches: Sequence[tuple[Any, ...]],
) -> Plan:
    """Returns the plan with the candidates that are chosen; these, and the scores, are kept in the folder of the piece ``name``."""
    bar = job.screen.start(f"{name} scores", len(asked.candidates))
    with job.folder.locked(SCORED):  # scores of one kind are found by one worker, and read by the others
        scores = lb.sensitivity(
            fn, plan, params, batches, candidates=asked.candidates, method=asked.method, loss=asked.loss,
            cache=job.folder.path / SCORED, progress=bar,
        )  # fmt: skip
    budget = asked.budget if isinstance(asked.budget, Budget) else asked.budget(plan)
    rounds: list[dict[str, Any]] = []
    if asked.compiled:
        assert asked.target is not None
        state, *x = batches[0]
        best, programs = fitting(
            fn, plan, params, batches, scores, args=(state, *jax.tree.map(lambda x: x[:1], x)), budget=budget, target=asked.target,
            progress=lambda each: job.screen.say(f"{name}: {each.weights:,} bytes of weights, {each.flash:,} of flash"),
        )  # fmt: skip
        rounds = [program._asdict() for program in programs]
    elif asked.generations:
        bar = job.screen.start(f"{name} generations", asked.generations)
        best = evolve(
            fn, plan, params, batches, scores, budget=budget, target=asked.target, generations=asked.generations,
            progress=bar,
        )  # fmt: skip
    else:
        best = allocation(plan, scores, budget=budget, target=asked.target)
    said = {"choice": best.choice, "scores": json.loads(dataclasses.replace(scores, seconds=0.0).json())}
    said |= {"rounds": rounds} if rounds else {}
    write_json(job.folder.piece(name) / ALLOCATED, said)  # without times: made again, the same bits
    if asked.trained is None:
        return best.plan
    learned = {path: asked.trained(text) for path, text in best.choice.items() if text != "keep"}
    return lb.with_quantizers(best.plan, lambda row: learned.get(row.path))
