"""What the table of mixed plans is made of: networks x plans x recipes, as a suite of the engine.

A method is one plan by one recipe, packed and run by `lowbit.execute` on inputs that no calibration has seen. How well scores
predict is measured of the float network alone: with another score no plan is measured again.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from experiments.mixed_evals import compared, sensitivities, stored_bits
from experiments.mixed_summary import report
from lowbit.allocate.budget import Budget
from lowbit.learn.distill import logits_loss
from lowbit.plan.rows import Plan
from lowbit.run import Allocation, Dataset, Experiment, Fit, Method, Model, Suite, cross_entropy

QAT = "qat"
"""The recipe that trains: learned steps, taught by the float network."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network with its data.

    Attributes:
        data: training samples calibrate; test samples have labels ``[samples, (class, unit)]``: the class where a sample is
            scored, else -1; and where its logits are compared, the photograph, sentence or image that a bootstrap draws, else -1.
        model: whose result is logits, classes last; batch norms folded.
        right: ``(logits, logits of float, classes) -> [samples]`` of those that are scored, 0 or 1.
        calibration: samples that calibrate and score candidates.
        batch: of them in a call.
        test: samples of a call.
        fit: how the float network is trained, or None.
        taught: how a quantized one is, or None.
    """

    data: Callable[[], Dataset]
    model: Callable[[int], Model]
    right: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
    calibration: int
    batch: int
    test: int = 50
    fit: Fit | None = None
    taught: Fit | None = None


@dataclasses.dataclass(frozen=True)
class Budgeted:
    """One budget, and the uniform plans that it is compared with.

    Attributes:
        bits: mean stored bits of a weight, scales included; or a rule: as large as the uniform plan of it.
        uniform: rules of plans that are no smaller, or are shown for another reason.
    """

    bits: float | str
    uniform: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What plans are called by."""
        return f"as {self.bits}" if isinstance(self.bits, str) else f"{self.bits:g}"

    @property
    def limit(self) -> Budget | Callable[[Plan], Budget]:
        """As `lowbit.run.Allocation` takes it."""
        return functools.partial(as_large, self.bits) if isinstance(self.bits, str) else lb.budget(bits=self.bits)


@dataclasses.dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: of its folder.
        title: what the table calls it.
        subject: the network and its data.
        right: what the labelled inputs say.
        candidates: to choose from.
        budgets: that are compared.
        keep: globs of operations that stay in float.
        ladder: further budgets, whose plans are rounded to nearest: for the front, and what was predicted.
        chosen: the method whose scores choose.
        methods: of `lowbit.sensitivity`, with the loss of those that take one (``own``: the likelihood of the model's own classes):
            all are compared with what was measured.
        measured: batches of compared inputs on which every candidate is measured at every operation, one at a time.
        recipes: of `lowbit.quantize`, or `QAT`; the first has the ladder and every candidate as a uniform plan.
        positions: distributions among an input's logits, of whose divergences the mean is measured and scores are the sum.
        generations: of evolution, which begins with the plan of each budget and looks at whole plans rounded to nearest, on the
            calibration data; 0: none.
    """

    name: str
    title: str
    subject: Subject
    right: str
    candidates: tuple[str, ...]
    budgets: tuple[Budgeted, ...]
    keep: tuple[str, ...] = ()
    ladder: tuple[float, ...] = ()
    chosen: str = "taylor kl"
    methods: tuple[str, ...] = ("taylor kl", "taylor mse", "fisher kl", "hessian own", "linearity", "sqnr")
    measured: int = 1
    recipes: tuple[str, ...] = ("rtn", "gptq")
    positions: int = 1
    generations: int = 0

    @property
    def cells(self) -> "tuple[Cell, ...]":
        """Every mixed plan, the uniform ones beside it, and of the first recipe the ladder."""
        every = (cell for recipe in self.recipes for cell in _of_recipe(self, recipe))
        return tuple({cell.name: cell for cell in every}.values())


class Cell(NamedTuple):
    """One plan by one recipe.

    Attributes:
        plan: its name.
        recipe: of `Network.recipes`.
        rule: of a uniform plan, else None.
        budget: of a mixed one, else None.
        generations: of evolution.
    """

    plan: str
    recipe: str
    rule: str | None = None
    budget: Budgeted | None = None
    generations: int = 0

    @property
    def name(self) -> str:
        """As the summary names it."""
        return f"{self.plan}/{self.recipe}"

    @property
    def method(self) -> str:
        """The name of its method, which is its folder's.

        Example:
            >>> Cell("mixed 3.5", "rtn").method
            'mixed_3_5-rtn'
        """
        return f"{re.sub('[^A-Za-z0-9]+', '_', self.plan)}-{self.recipe}"


def _of_recipe(network: Network, recipe: str) -> Iterator[Cell]:
    is_first = recipe == network.recipes[0]
    for budget in network.budgets:
        yield Cell(f"mixed {budget.name}", recipe, budget=budget)
        yield from (_uniform(rule, recipe) for rule in budget.uniform)
        if is_first and network.generations:
            yield Cell(f"evolved {budget.name}", recipe, budget=budget, generations=network.generations)
    if is_first:
        yield from (Cell(f"mixed {bits:g}", recipe, budget=Budgeted(bits)) for bits in network.ladder)
        yield from (_uniform(rule, recipe) for rule in network.candidates)


def _uniform(rule: str, recipe: str) -> Cell:
    return Cell(f"uniform {rule.replace('/', ' ')}", recipe, rule)


def suite(name: str, *networks: Network) -> Suite:
    """Returns the suite whose report is ``summary.json`` of all networks, in the order of the table."""
    return Suite(name, tuple(map(experiment, networks)), functools.partial(report, name, networks))


def experiment(network: Network) -> Experiment:
    """Returns every plan of a network by its recipes; scores of every method are measured of the float network."""
    subject = network.subject
    methods = {method: _loss(method) for method in network.methods}
    return Experiment(
        name=network.name,
        data=subject.data,
        model=subject.model,
        metric=None,
        loss=None if subject.fit is None else on_classes,
        fit=subject.fit,
        methods=tuple(_method(network, cell) for cell in network.cells),
        seeds=(0,),
        evals=(
            compared(subject.right, network.right),
            sensitivities(_rules(network, "w8"), network.candidates, methods, network.measured),
        ),
        calibration_samples=subject.calibration,
        calibration_batch=subject.batch,
        test_batch=subject.test,
    )


def _method(network: Network, cell: Cell) -> Method:
    is_trained = cell.recipe == QAT
    how: dict[str, Any] = (
        {"fit": network.subject.taught, "distill": logits_loss} if is_trained else {"recipe": cell.recipe}
    )
    if cell.rule is not None:
        return Method(cell.method, _rules(network, lb.lsq(cell.rule) if is_trained else cell.rule), **how)
    assert cell.budget is not None
    method, loss = _loss(network.chosen)
    allocation = Allocation(
        network.candidates, cell.budget.limit, method, loss=loss, generations=cell.generations,
        trained=lb.lsq if is_trained else None,
    )  # fmt: skip
    return Method(cell.method, _rules(network, "w8"), allocate=allocation, **how)


def _rules(network: Network, rest: str | lb.Quantizers) -> dict[str, str | lb.Quantizers]:
    return dict.fromkeys(network.keep, "keep") | {"**": rest}


def _loss(text: str) -> tuple[str, Callable[[jax.Array], jax.Array] | str | None]:
    method, _, loss = text.partition(" ")
    return method, own_classes if loss == "own" else loss or None


def own_classes(logits: jax.Array) -> jax.Array:
    """Returns how unlikely the model's own most likely classes are, on the mean: a loss without labels that has a Hessian."""
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - jnp.max(logits, axis=-1))


def on_classes(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross entropy of labels ``[samples, (class, unit)]``."""
    return cross_entropy(logits, labels[:, 0])


def as_large(rule: str, plan: Plan) -> Budget:
    """Returns the budget that the uniform plan of a rule just fits."""
    uniform = lb.with_quantizers(plan, lambda row: rule if row.weight and row.weight.spec else "keep")
    return lb.budget(bits=stored_bits(uniform) * (1 + 1e-9))
