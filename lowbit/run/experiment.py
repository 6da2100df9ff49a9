"""What an experiment is: frozen, typed data. One file is one experiment; variation is a value, never a fork."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lowbit.allocate.budget import Budget
from lowbit.core.quantizer import Quantizers
from lowbit.plan.rows import Plan, Row
from lowbit.recipes.recipe import Recipe

from .evals.column import Eval
from .metric import Metric
from .samples import Dataset
from .writers import Writer

FLOAT = "float"
"""The name of the first row: every operation left as it is."""

Penalty = Callable[[Plan, Any, Any], jax.Array]
"""``penalty(plan, params, qstate)``: a scalar that is added to the training loss."""

Around = Callable[[optax.GradientTransformation, int], optax.GradientTransformation]
"""``around(optimizer, steps)``: an optimizer made of another, for so many steps."""

Loss = Callable[[Any, Any], jax.Array]
"""``loss(outputs, labels)``: a scalar."""


class Model(NamedTuple):
    """A network as the engine sees it.

    Attributes:
        fn: ``fn(params, state, x) -> y``, evaluation; or ``fn(params, state, *inputs)`` for data whose inputs are a tuple.
        params: float parameters.
        state: everything else (batch statistics), or an empty dict.
        train_fn: where training differs from evaluation, ``fn(params, state, x, rngs={"dropout": key}) -> (y, state')`` of a
            linen module, or ``fn(params, state, x) -> (y, state')`` of an nnx module, whose streams are in its state; else None.
    """

    fn: Callable[..., Any]
    params: Any
    state: Any
    train_fn: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class Fit:
    """One training run: Adam, a cosine schedule down to zero.

    Attributes:
        epochs: passes over the training samples.
        batch: samples per step; a last short batch is left out.
        lr: learning rate of the parameters.
        step_lr: learning rate of the quantizers' own learned leaves, such as LSQ's step sizes.
        step_decay: L2 penalty on them, as the gradient sees it: PACT's clip shrinks by it alone.
        devices: over which every batch is spread, in equal parts; parameters are on all. Sums over a batch round otherwise
            than on one, so what was trained on another number of devices is another piece.
    """

    epochs: int = 3
    batch: int = 128
    lr: float = 1e-3
    step_lr: float = 1e-3
    step_decay: float = 0.0
    devices: int = 1


@dataclasses.dataclass(frozen=True)
class Allocation:
    """Bits chosen for every operation, by `lowbit.sensitivity` and `lowbit.allocate`.

    Attributes:
        candidates: rule texts or quantizers.
        budget: of `lowbit.budget`, or ``budget(plan)`` of the plan that the rules make.
        method: of `lowbit.sensitivity`, one that needs no labels.
        target: only what this target holds, or None.
        loss: of `lowbit.sensitivity`.
        generations: of evolution (`lowbit.allocate.evolution.evolve`), which begins with what the scores choose; 0: none.
        trained: ``trained(candidate)`` is the quantizer that learns in its place, such as `lowbit.lsq`; or None.
        compiled: ``budget``'s bytes of flash are those of the whole program that the target's compiler makes of a full-integer
            plan, code and all, in place of weights and scales alone; a plan is compiled, and bits are chosen again, until it fits.
    """

    candidates: tuple[Any, ...]
    budget: Budget | Callable[[Plan], Budget]
    method: str = "mse"
    target: str | None = None
    loss: Callable[[Any], Any] | str | None = None
    generations: int = 0
    trained: Callable[[str], Quantizers] | None = None
    compiled: bool = False

    def __post_init__(self):
        if self.compiled and (self.target is None or self.generations or self.trained):
            raise ValueError("Allocation(compiled=True) needs target=, and takes neither generations= nor trained=")


@dataclasses.dataclass(frozen=True)
class Settled:
    """Training that goes on once widths are learned: each operation keeps the one that `lowbit.harden` made of it.

    Attributes:
        fit: how long, how fast.
        quantizers: ``quantizers(row)`` of an operation whose width was learned, of the hardened plan:
            ``row.weight.spec.format.bits`` is its width.
    """

    fit: Fit
    quantizers: Callable[[Row], Quantizers]


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table: all that is done to the float model, in one place.

    Attributes:
        name: the row's name and its folder's.
        rules: what `lowbit.bind` takes: glob over operation paths -> rule text or quantizers.
        fit: quantization-aware training from the float parameters, or None: post-training.
        penalty: ``penalty(plan, params, qstate)`` is added to the loss, or None.
        around: ``around(optimizer, steps)`` is the parameters' optimizer, one that leads them to the grid by itself, or
            None. The float function is trained with it, and ranges are measured afterwards.
        freeze_norms: fold batch norms into the weights before these are quantized (`lowbit.rewrites.batch_norm`), in
            training with correction up to this step, then with frozen statistics; None leaves them as they are.
        rewrites: ``rewrites(*inputs)`` returns what `lowbit.chain` takes, for a batch: done to the float model first, or None.
        recipe: of `lowbit.quantize`, in place of measured ranges and rounding to nearest; or None.
        allocate: chooses among candidates where ``rules`` quantize at all, before a fit or a recipe; or None.
        integer: whether the plan is full-integer.
        rounding: of a full-integer plan.
        distill: ``distill(outputs, outputs of float)`` in place of the experiment's loss, such as
            `lowbit.learn.distill.logits_loss`: the float model teaches and no label is read; or None.
        settled: training that follows ``fit`` with the widths that it learned, without ``penalty``; or None.
    """

    name: str
    rules: Mapping[str, str | Quantizers]
    fit: Fit | None = None
    penalty: Penalty | None = None
    around: Around | None = None
    freeze_norms: int | None = None
    rewrites: Callable[..., tuple[Any, ...]] | None = None
    recipe: str | Recipe | None = None
    allocate: Allocation | None = None
    integer: bool = False
    rounding: str = "exact"
    distill: Loss | None = None
    settled: Settled | None = None

    def __post_init__(self):
        if self.freeze_norms is not None and (self.freeze_norms < 0 or self.fit is None or self.around):
            raise ValueError(f"{self.name}: freeze_norms is a step >= 0 of quantized training, got {self.freeze_norms}")
        if self.fit is None and (self.penalty or self.around or self.distill):
            raise ValueError(f"{self.name}: penalty, distill and around are for training; give it a fit")
        if self.settled and (self.fit is None or self.around):
            raise ValueError(f"{self.name}: settled is training after quantized training: give it a fit, and no around")
        if self.around and (self.penalty or self.distill):
            raise ValueError(
                f"{self.name}: penalty and distill need quantized training and around is without: give one of them"
            )
        if self.rewrites and self.fit:
            raise ValueError(f"{self.name}: rewrites are of the evaluated function, fit trains: give one of them")
        if self.recipe and (self.fit or self.rewrites or self.integer):
            raise ValueError(f"{self.name}: a recipe does all from the float model: no fit, rewrites, integer")
        if self.rounding != "exact" and not self.integer:
            raise ValueError(f"{self.name}: rounding is of full-integer plans: set integer=True")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole experiment: every method for every seed is a piece; evals measure pieces; a report draws what was measured.

    Attributes:
        name: of the run's folder.
        data: returns the data set.
        model: returns the network for a seed.
        loss: ``loss(outputs, labels)``, what training lowers; None where nothing is trained.
        metric: what is measured of outputs; None where there are no labels, or time alone is asked for: then nothing is
            simulated or executed but by evals, such as `lowbit.run.beside_float`.
        methods: what is compared; the float model is always the first row.
        fit: how the float model is trained, or None where `model` returns a trained one.
        seeds: one whole repetition each.
        evals: what is measured of every piece besides metric, bits and bytes.
        report: ``report(results)`` draws and prints `lowbit.run.results.Results`; None for `lowbit.run.report.standard`.
        writers: functions that take every line of the metrics besides the folder (`lowbit.run.writers`).
        watch: told ``(piece, steps done, loss)`` after every step of a training, or None. The loss is a jax array that may not
            be computed yet: to read it waits.
        baseline: name of a guess without a model, and ``outputs`` of it for the test inputs; or None.
        train_samples: at most this many for training; None: all.
        test_samples: at most this many for the metric; None: all.
        test_batch: samples per call where the metric is measured.
        calibration_samples: training samples, without labels, that set input ranges.
        calibration_batch: of them in a call.
    """

    name: str
    data: Callable[[], Dataset]
    model: Callable[[int], Model]
    metric: Metric | None
    methods: tuple[Method, ...]
    loss: Loss | None = None
    fit: Fit | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    evals: tuple[Eval, ...] = ()
    report: Callable[[Any], None] | None = None
    writers: tuple[Writer, ...] = ()
    watch: Callable[[str, int, jax.Array], None] | None = None
    baseline: tuple[str, Callable[..., np.ndarray]] | None = None
    train_samples: int | None = None
    test_samples: int | None = None
    test_batch: int = 500
    calibration_samples: int = 1_000
    calibration_batch: int = 250

    def __post_init__(self):
        names = [FLOAT, *(method.name for method in self.methods)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"methods: the name {twice[0]!r} is taken twice ({FLOAT!r} is the float row's)")
        if odd := next((name for name in (self.name, *names) if not name.replace("-", "_").isidentifier()), None):
            raise ValueError(f"names become folders: use letters, digits, _ and - only, got {odd!r}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct integers from 0, at least one, got {self.seeds}")
        for name in ("train_samples", "test_samples", "test_batch", "calibration_samples", "calibration_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        fits = (("fit", self.fit), *((f"methods.{m.name}.fit", m.fit) for m in self.methods))
        for owner, fit in fits:
            if fit is not None and (fit.epochs < 1 or fit.batch < 1):
                raise ValueError(f"{owner}: epochs and batch must be at least 1, got {fit.epochs} and {fit.batch}")
            if fit is not None and (fit.devices < 1 or fit.batch % fit.devices):
                raise ValueError(f"{owner}: a batch of {fit.batch} does not split into {fit.devices} devices")
        if self.metric is None and self.baseline is not None:
            raise ValueError("baseline: a guess is measured by the metric, and there is none")
        if self.loss is None and (self.fit or any(m.fit and not m.distill for m in self.methods)):
            raise ValueError("loss: a fit needs a training loss, such as lowbit.run.cross_entropy")
        asked = [each.name for each in self.evals]
        if len(set(asked)) != len(asked):
            raise ValueError(f"evals: names must differ, got {', '.join(asked)}")

    @property
    def rows(self) -> tuple[Method, ...]:
        """What is done, float first."""
        return (Method(FLOAT, {}), *self.methods)


@dataclasses.dataclass(frozen=True)
class Suite:
    """Several experiments with one report over all of them; one whose data or network cannot be had is left out by name.

    Attributes:
        name: of the run's folder; each experiment has a folder of its name in it.
        experiments: in the order of the report.
        report: ``report(results, folder)`` of the list of all `lowbit.run.results.Results` that there are;
            ``folder.absent`` says by name why the others are not there.
    """

    name: str
    experiments: tuple[Experiment, ...]
    report: Callable[[Any, Any], None]

    def __post_init__(self):
        names = [each.name for each in self.experiments]
        if len(set(names)) != len(names) or not names:
            raise ValueError(f"experiments: names must differ, at least one, got {', '.join(names)}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all experiments."""
        return tuple(sorted({seed for each in self.experiments for seed in each.seeds}))
