"""The contracts of allocators, forms, targets and evals, over those that are found; each is shown to fail where it is broken.

Quantizers, integer kinds and inputs have files of their own here; rewrites are found in `tests/rewrites/test_rewrites.py`, statistics in
`tests/observe/test_statistics.py`, recipes with their solvers in `tests/recipes/test_quantize.py`.
"""

import dataclasses
import importlib
import inspect
import itertools
import pkgutil

import numpy as np
import pytest

from lowbit.allocate import milp
from lowbit.allocate.problem import Problem
from lowbit.export import forms
from lowbit.export.runners import runners
from lowbit.formats.lookup import is_format
from lowbit.interpret.integer.nodes import TABULAR
from lowbit.interpret.integer.ops import kinds
from lowbit.run.evals.column import Column, Eval
from lowbit.targets.table import TARGETS

GRANULARITIES = {"tensor", "channel", "group", "tile"}
PRIMITIVES = {"dot_general", "conv_general_dilated", "gather"}


def functions(package, wanted):
    """The public functions of a package's modules that a signature is asked of, by module and name."""
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        for name, function in vars(module).items():
            is_own = inspect.isfunction(function) and function.__module__ == module.__name__
            if is_own and not name.startswith("_") and wanted(inspect.signature(function)):
                yield f"{info.name}.{name}", function


# allocators


def _chooses(signature):
    first, *rest = [p for p in signature.parameters.values() if p.default is p.empty] or [None]
    return not rest and first is not None and first.annotation is Problem and signature.return_annotation in CHOICES


CHOICES = (np.ndarray | None, milp.Solution)
ALLOCATORS = dict(functions("lowbit.allocate", _chooses))


def problems():
    """Small enough that every choice is looked at; costs in two units, a candidate that does not fit, a tight and a loose budget."""
    for seed, share in itertools.product(range(3), (0.2, 0.7)):
        rng = np.random.default_rng(seed)
        scores = np.sort(rng.lognormal(0.0, 2.0, (5, 3)), axis=1)[:, ::-1].copy()
        scores[seed, 0] = np.inf
        costs = {
            "bytes": rng.integers(1, 100, (5, 1)) * np.array([2.0, 4.0, 8.0]),
            "macs": rng.uniform(1.0, 2.0, (5, 3)),
        }
        free = Problem(tuple("abcde"), ("w2", "w4", "w8"), scores, costs, {})
        every = [np.array(choice) for choice in itertools.product(range(3), repeat=5)]
        totals = [free.cost("bytes", choice) for choice in every if np.isfinite(free.score(choice))]
        problem = dataclasses.replace(free, limits={"bytes": float(np.quantile(totals, share))})
        yield problem, min(problem.score(choice) for choice in every if problem.is_within(choice))


def check_allocator(choose):
    for problem, best in problems():
        made = choose(problem)
        choice = made.choice if isinstance(made, milp.Solution) else made
        if choice is not None:
            assert problem.is_within(choice)
            assert problem.score(choice) >= best * (1 - 1e-12)
        if isinstance(made, milp.Solution):  # which says that it is exact
            assert made.gap == 0.0
            assert problem.score(made.choice) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("name", ALLOCATORS)
def test_an_allocator_stays_within_its_budget(name):
    check_allocator(ALLOCATORS[name])


def test_allocators_are_found():
    assert {"milp.solve", "baselines.best_uniform", "baselines.head_and_tail", "baselines.descended"} <= set(ALLOCATORS)


@pytest.mark.parametrize(
    "choose",
    [
        lambda problem: np.argmin(problem.scores, axis=1),  # knows no budget
        lambda problem: np.zeros(5, int),  # takes what does not fit
        lambda problem: milp.Solution(**{**vars(milp.solve(problem)), "choice": np.full(5, 1)}),  # is not the best
    ],
)
def test_a_wrong_allocator_is_found(choose):
    with pytest.raises(AssertionError):
        check_allocator(choose)


# forms and targets


def check_target(target, known_forms, known_runners):
    assert target.form in known_forms, target.form
    assert target.name in known_runners, target.name
    assert {*target.holds} <= PRIMITIVES
    for holds in target.holds.values():
        words = {*holds.weights, *(word for word in holds.inputs if word != "float"), *holds.weight_granularity} - {"*"}
        assert all(is_format(word) for word in words), words
        given = {*holds.input_granularity, *itertools.chain(*holds.weight_granularity.values())}
        assert given <= GRANULARITIES, given
    assert {*target.refuses} <= {*kinds(), *TABULAR}, target.refuses
    assert all(target.refuses.values())
    assert list(target.widths) == sorted(target.widths)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_a_target_speaks_of_what_there_is(target):
    check_target(target, forms.FORMS, runners())


def test_every_form_is_taken_and_run():
    assert {target.form for target in TARGETS.values()} == set(forms.FORMS)
    assert forms.folders_with("run") == tuple(sorted(forms.FORMS))
    for form in forms.folders_with("write"):
        module = importlib.import_module(f"lowbit.export.{form}.write")
        (given,) = inspect.signature(module.write).parameters.values()
        assert given.annotation is forms.Lowered
        assert all(isinstance(tool, str) for tool in forms.tools(form))


@pytest.mark.parametrize(
    "change",
    [
        {"form": "tensorflow"},
        {"name": "nobody"},
        {"refuses": {"softmaxx": "no kernel"}},
        {"refuses": {"softmax": ""}},
        {"widths": (8, 4)},
        {"holds": {"dot": TARGETS["c"].holds["dot_general"]}},
        {"holds": {"dot_general": dataclasses.replace(TARGETS["c"].holds["dot_general"], weights=("int9",))}},
        {"holds": {"dot_general": dataclasses.replace(TARGETS["c"].holds["dot_general"], input_granularity=("row",))}},
    ],
    ids=str,
)
def test_a_wrong_target_is_found(change):
    with pytest.raises(AssertionError):
        check_target(dataclasses.replace(TARGETS["c"], **change), forms.FORMS, runners())


# evals

EVALS = dict(functions("lowbit.run.evals", lambda signature: signature.return_annotation is Eval))
NEEDS = {"device.device": ("cortex-m4",), "device_time.device_time": ("c",), "scores.scores": (dict, "dB")}
"""What an eval must be told."""


def check_eval(made):
    assert isinstance(made, Eval)
    assert made.name.isidentifier() or made.name.replace("-", "_").isidentifier(), made.name
    heads = [column.head for column in made.columns]
    assert len(heads) == len(set(heads)), heads
    for column in made.columns:
        assert column.head
        assert column.of
        for values, base in (([], []), ([], [1.0]), ([1.0], []), ([1.0, 3.0], [2.0, 2.0])):
            text = column.text(values, base)
            assert isinstance(text, str), (column.head, text)
            assert len(text) <= 40, (column.head, text)
            assert values or not any(c.isdigit() for c in text), (column.head, text)  # nothing measured, no number


@pytest.mark.parametrize("name", EVALS)
def test_an_eval_fills_its_columns(name):
    check_eval(EVALS[name](*NEEDS.get(name, ())))


def test_evals_are_found():
    assert len(EVALS) >= 8
    assert set(NEEDS) <= set(EVALS)


@pytest.mark.parametrize(
    "columns",
    [
        (Column("mean", ("x",), lambda values, base: f"{np.mean(values or [0.0]):.1f}"),),  # a number of nothing
        (Column("mean", ("x",), lambda values, base: sum(values)),),  # no text
        (Column("", ("x",), lambda values, base: "-"),),
        (Column("one", ("x",), lambda values, base: "-"),) * 2,
    ],
)
def test_a_wrong_eval_is_found(columns):
    with pytest.raises(AssertionError):
        check_eval(Eval("mine", dict, columns))
