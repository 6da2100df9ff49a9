"""A piece, one method for one seed: from the float model to packed parameters, and what is measured of every one."""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from lowbit.interpret.state import abstract_state, marked
from lowbit.interpret.with_quantizers import rule_of
from lowbit.plan.rows import Plan
from lowbit.recipes.report import Report

from .allocating import allocated
from .experiment import FLOAT, Fit, Method, Model
from .floats import fitted, float_model, network
from .folder import TIMES, plain, write_json
from .job import Job, calibration, score
from .keys import name_of, train_key
from .losses import quantized_loss
from .measure import difference, outputs
from .quantized import quantized, served, settled_plan
from .samples import Inputs, arguments, chosen


class PromiseError(RuntimeError):
    """What is simulated is not what is executed, where every operand is an integer."""


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A finished piece, as evals take it.

    Attributes:
        job: the job.
        method: what was done.
        seed: to the float model of this seed.
        fn: the function that is served, ``fn(params, state, *inputs)``.
        plan: of it, as it was read back from the file.
        bound: the plan with its quantizers.
        params: float parameters, as they were packed.
        state: the function's state.
        qstate: quantizers' state; None where a recipe solved the codes.
        qparams: packed parameters.
        report: of the recipe that solved them, or None.
    """

    job: Job
    method: Method
    seed: int
    fn: Callable[..., Any]
    plan: Any
    bound: Any
    params: Any
    state: Any
    qstate: Any
    qparams: lb.QParams
    report: Report | None = None

    @property
    def name(self) -> str:
        """Of its folder, under the run's."""
        return name_of(self.method, self.seed)

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.job.folder.piece(self.name)

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.method.name == FLOAT

    @property
    def test(self) -> Inputs:
        """The test inputs."""
        return self.job.data.test.inputs

    def example(self, batch: int) -> tuple[jax.Array, ...]:
        """Returns the first test inputs, ``batch`` of them, as arguments."""
        return tuple(jnp.asarray(x) for x in arguments(chosen(self.test, slice(batch))))

    @functools.cached_property
    def executed(self) -> np.ndarray:
        """Outputs of `lowbit.execute` for all test inputs."""
        served = lb.execute(self.fn, self.plan)
        return outputs(lambda *x: served(self.qparams, self.state, *x), self.test, self.job.experiment.test_batch)

    @functools.cached_property
    def simulated(self) -> np.ndarray | None:
        """Outputs of `lowbit.simulate` for all test inputs; None where a recipe solved the codes."""
        if self.qstate is None:
            return None
        call = lb.simulate(self.fn, self.bound)
        return outputs(
            lambda *x: call(self.params, self.qstate, self.state, *x), self.test, self.job.experiment.test_batch
        )

    def score(self, results: np.ndarray) -> float:
        """Returns the metric of outputs for the first test inputs."""
        return score(self.job, results)


def check_rules(job: Job, methods: Sequence[Method]) -> None:
    """Raises where the rules of a method do not fit the network: before anything is trained.

    Rules of a rewritten network, whose paths are known only then, are left to its piece.

    Raises:
        ValueError: as `lowbit.bind` says it, after the method's name.
    """
    checked = [method for method in methods if method.rewrites is None and method.rules]
    if not checked:
        return
    x, model = calibration(job)[0], network(job, job.experiment.seeds[0])
    for method in checked:
        fn, params = served(method, model, x)
        try:
            plan = lb.bind(fn, method.rules, params, model.state, *x, **_options(method))
            if method.integer and method.fit is not None and method.around is None:
                _check_training(job, method, method.fit, model, plan)
        except ValueError as error:
            raise ValueError(f"{method.name}: {error}") from error


def _check_training(job: Job, method: Method, fit: Fit, model: Model, plan: Plan) -> None:
    """Raises ValueError where the function that is trained is not, step by step, the one that integers are served of."""
    asked = method.distill or job.experiment.loss
    assert asked is not None
    state, train = marked(plan, abstract_state(plan)), job.data.train
    loss = quantized_loss(model.fn, model.train_fn, plan, asked, method.penalty, method.freeze_norms)
    size = min(train.size, fit.batch)
    inputs, labels = next(train.batches(np.arange(size), size))
    if method.distill is not None:
        labels = jax.eval_shape(model.fn, model.params, model.state, *arguments(inputs))
    tree, rest = {"params": model.params, "learn": state["learn"]}, {"state": model.state, "fixed": state["fixed"]}
    try:
        jax.eval_shape(loss, tree, rest, inputs, labels, jax.random.key(0), np.int32(0))
    except ValueError as error:
        raise ValueError(
            f"integer=True: in training the function computes what it does not when it is served, such as dropout or the "
            f"statistics of a batch, and integers hold what is served alone; train the form that is served (no train_fn, norms "
            f"folded before), or leave integer=True out. What stands in the way: {error}"
        ) from error


def _options(method: Method) -> dict[str, Any]:
    return {"integer": True, "rounding": method.rounding} if method.integer else {}


def make_piece(job: Job, method: Method, seed: int) -> Piece:
    """Returns a piece packed, saved and read back, trained where the method says so, or its training read back."""
    if method.recipe is None:
        fn, plan, params, state, qstate, qparams = _bound(job, method, seed)
        report = None
    else:
        fn, plan, params, state, qparams, report = _solved(job, method, seed)
        qstate: Any = None
    if qparams is None:  # what was learned of widths and levels is said by specs from here on
        plan, qstate = lb.harden(plan, qstate)
    path = job.folder.piece(name_of(method, seed)) / "packed.safetensors"
    lb.save(path, plan, lb.pack(plan, params, qstate) if qparams is None else qparams)
    stored, qparams = lb.load(path)
    assert stored.fingerprint == plan.fingerprint
    return Piece(job, method, seed, fn, stored, plan, params, state, qstate, qparams, report)


def _solved(job: Job, method: Method, seed: int) -> tuple[Any, ...]:
    """A method that a recipe does from the float model to codes."""
    assert method.recipe is not None
    model, name, batches = float_model(job, seed), name_of(method, seed), calibration(job)
    rules = method.rules
    if method.allocate is not None:
        pairs = [(model.state, *x) for x in batches]
        plan = lb.bind(model.fn, rules, model.params, *pairs[0])
        plan = allocated(job, method.allocate, name, model.fn, plan, model.params, pairs)
        rules = {row.path: rule_of(row).quantizers for row in plan.rows}
    bar = job.screen.start(f"{name} {method.recipe}")
    qparams, plan, report = lb.quantize(
        model.fn, model.params, rules, state=model.state, recipe=method.recipe,
        batches=batches, cache=job.folder.piece(name) / "solved", progress=lambda what, done, of: bar(done),
    )  # fmt: skip
    said = {key: value for key, value in json.loads(report.to_json()).items() if key != TIMES}
    write_json(job.folder.piece(name) / "report.json", said)  # without times: made again, the same bits
    return report.fn, plan, model.params, report.state, qparams, report


def _bound(job: Job, method: Method, seed: int) -> tuple[Any, ...]:
    """A method whose ranges are measured, and trained where it says so."""
    model, name = float_model(job, seed), name_of(method, seed)
    if method.around is not None:
        model = fitted(job, model, method, seed, name, train_key(job, method, seed))
    batches = calibration(job)
    if method.rewrites is not None:
        rewrites = method.rewrites(*batches[0])
        fn, params, state = lb.chain(*rewrites, batches=batches)(model.fn, model.params, model.state)
        model = Model(fn, params, state)
    fn, params = served(method, model, batches[0])
    plan = lb.bind(fn, method.rules, params, model.state, *batches[0], **_options(method))
    pairs = [(model.state, *x) for x in batches]
    if method.allocate is not None:
        plan = allocated(job, method.allocate, name, fn, plan, params, pairs)
    bar = job.screen.start(f"{name} ranges", len(batches))
    qstate = lb.calibrate(fn, plan, params, pairs, key=jax.random.key(seed), progress=bar)
    if method.fit is None or method.around is not None:
        return fn, plan, params, model.state, qstate, None
    key = train_key(job, method, seed)
    model, qstate = quantized(job, method, model, plan, qstate, seed, name, key)
    fn, params = served(method, model, batches[0])
    if method.settled is not None:
        plan = settled_plan(plan, qstate, method.settled)
        bar = job.screen.start(f"{name} ranges", len(batches))
        qstate = lb.calibrate(
            fn, plan, params, [(model.state, *x) for x in batches], key=jax.random.key(seed), progress=bar
        )
        model, qstate = quantized(job, method, model, plan, qstate, seed, name, key, is_settled=True)
        fn, params = served(method, model, batches[0])
    return fn, plan, params, model.state, qstate, None


def measure_piece(piece: Piece) -> dict[str, Any]:
    """Returns what is measured of every piece: sizes, and where there is a metric that, simulated and executed from the file.

    Raises:
        PromiseError: as `promised`, where there is a metric.
    """
    report = piece.report
    result: dict[str, Any] = {
        "bits_per_weight": _bits(piece) if report is None else report.bits_per_weight,
        "bytes": {"file": (piece.folder / "packed.safetensors").stat().st_size, "weights": _weights(piece)},
        "rules": plain(piece.method.rules),
    }
    if report is not None:
        result["recipe"] = {"text": report.recipe, TIMES: round(sum(report.seconds.values()), 1)}
    if piece.job.experiment.metric is None:
        return result
    promise = promised(piece)
    metric = {"execute": piece.score(piece.executed)}
    if piece.simulated is not None:
        metric["simulate"] = piece.score(piece.simulated)
    return result | {"metric": metric} | promise


def promised(piece: Piece) -> dict[str, Any]:
    """Returns under ``difference`` by how much the simulated outputs differ from those executed; nothing where a recipe solved.

    Raises:
        PromiseError: if they differ where every operand that is quantized is an integer.
    """
    if piece.simulated is None:
        return {}
    gap = difference(piece.simulated, piece.executed)
    if gap["max"] and all(row.is_integer for row in piece.plan.quantized):
        raise PromiseError(
            f"simulate - execute is {gap['max']:.3g} in {100 * gap['share']:.3g} % of outputs, where every operand is an "
            "integer: it must be 0"
        )
    return {"difference": {"execute": gap}}


def _bits(piece: Piece) -> float:
    """Stored bits per weight, scales included; of the float arrays where nothing is quantized."""
    if piece.qparams.weights():
        return piece.qparams.bits_per_weight
    leaves = jax.tree.leaves(piece.params)
    return 8 * lb.nbytes(piece.params) / sum(leaf.size for leaf in leaves)


def _weights(piece: Piece) -> int:
    return piece.qparams.nbytes if piece.qparams.weights() else lb.nbytes(piece.params)
