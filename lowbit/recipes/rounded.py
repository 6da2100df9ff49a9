"""From ranges to rounded weights: windows, ranges measured again, blocks; and which of two recipes loses less on batches held out."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lowbit.calibrate.fold import calibrate
from lowbit.core.kept import Kept
from lowbit.core.metrics import decibels
from lowbit.interpret.simulate import simulate
from lowbit.plan.rows import Plan, Site
from lowbit.rewrites.bias_correction import behind
from lowbit.solvers.brecq import error

from .blocks import reconstructed
from .recipe import Recipe
from .work import Progress, Work, bare_plan, carried

_HELD = 4
"""One batch of so many is held out where two recipes are compared; of fewer, none: both are compared on what they have seen."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What a recipe rounds.

    Attributes:
        fn: the model, rewritten.
        plan: of it.
        params: float.
        qstate: with ranges of inputs and scales of nearest weights.
        calls: calibration batches, as the program takes them.
        count: how many.
        window: bytes of second moments held at a time.
        cache: a folder for what is solved, or None.
        say: told of what is done.
        first: the first batch.
    """

    fn: Callable[..., Any]
    plan: Plan
    params: Any
    qstate: Any
    calls: Callable[[], Iterator[tuple[Any, ...]]]
    count: int
    window: int
    cache: str | Path | None
    say: Progress
    first: tuple[Any, ...]


class Rounded(NamedTuple):
    """What became of it: the recipe that was kept, float parameters, those on grids, state, codes, notes and numbers by leaf path."""

    recipe: Recipe
    before: Any
    params: Any
    qstate: Any
    codes: dict[str, Any]
    notes: dict[str, list[str]]
    results: dict[str, Any]


def rounded(given: Given, recipe: Recipe) -> Rounded:
    """Returns the rounded model: by the recipe, or by its rival where that loses less on batches that neither has seen.

    What is compared are the model's results beside the float model's, so that rows which never reach them, such as padding, do not
    count.
    """
    if recipe.rival is None:
        return _one(given, recipe)
    held = given.count // _HELD
    taught = given.count - held

    def some() -> Iterator[tuple[Any, ...]]:
        return itertools.islice(given.calls(), taught)

    fewer = dataclasses.replace(given, calls=some, count=taught)
    outcomes = [_one(fewer, each) for each in (recipe, recipe.rival)]
    lost = [_lost(given, each, taught if held else 0) for each in outcomes]
    said = ", ".join(
        f"{decibels(1.0, loss):.1f} dB by {each.recipe.name}" for loss, each in zip(lost, outcomes, strict=True)
    )
    where = f"{held} held-out batches" if held else "calibration batches"
    best = outcomes[0] if lost[0] <= lost[1] else outcomes[1]
    return best._replace(recipe=best.recipe.named(recipe.name, f"{best.recipe.name} kept: on {where} {said}"))


def _lost(given: Given, outcome: Rounded, first: int) -> float:
    """The mean relative error of a rounded model's results on the batches from one on."""
    bare = bare_plan(given.plan, frozenset(outcome.codes))
    state = carried(bare, outcome.qstate)
    right = jax.jit(given.fn)
    run: Any = right if state is None else simulate(given.fn, bare)
    lost = []
    for args in itertools.islice(given.calls(), first, None):
        want = jax.tree.leaves(right(given.params, *args))
        got = run(outcome.params, *args) if state is None else run(outcome.params, state, *args)
        lost.append(float(error(jax.tree.leaves(got), want)))
    return sum(lost) / len(lost)


def _one(given: Given, recipe: Recipe) -> Rounded:
    fn, plan, calls, say = given.fn, given.plan, given.calls, given.say

    def content() -> Iterator[Any]:
        yield given.params, jax.jit(fn)(given.params, *given.first)
        yield from calls()

    kept = Kept(given.cache, f"{plan.fingerprint} {recipe} {given.window}", content)
    biases = behind(fn, plan, given.params, given.first) if recipe.solver.is_centered else {}
    work = Work(fn, plan, recipe, calls, given.count, kept, say, biases)
    solved, qstate, codes, notes, results = work.run(given.params, given.qstate, given.window)
    if recipe.is_remeasured and any(_is_static(site) for row in plan for site in row.sites):
        bare = bare_plan(plan, frozenset(codes))
        again = calibrate(
            fn, bare, solved, calls(), sequential=True, progress=lambda n: say("ranges again", n, given.count)
        )
        qstate = _with_inputs_of(plan, qstate, again)
    if recipe.blocks is not None:
        solved, qstate, codes, said, sizes = reconstructed(
            plan, recipe.blocks, given.params, solved, qstate, codes, calls(), kept, say,
            is_free=recipe.solver.value != "none",
        )  # fmt: skip
        for key, more in said.items():
            notes.setdefault(key, []).extend(more)
        results |= sizes
    return Rounded(recipe, given.params, solved, qstate, codes, notes, results)


def _is_static(site: Site) -> bool:
    return not site.is_weight and site.spec is not None and not site.spec.dynamic


def _with_inputs_of(plan: Plan, qstate: Any, other: Any) -> Any:
    """A state with the inputs' part of another."""
    parts = {part: {key: dict(roles) for key, roles in qstate[part].items()} for part in ("learn", "fixed")}
    for row in plan.rows:
        for site in row.sites:
            if not site.is_weight and site.spec is not None:
                for part, sites in parts.items():
                    sites[site.key][site.role] = other[part][site.key][site.role]
    return parts
