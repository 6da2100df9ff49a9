"""`sensitivity`: how much loss every candidate is expected to cost at every operation."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowbit.calibrate.fold import calibrate
from lowbit.core.kept import Kept
from lowbit.interpret.bind import bind
from lowbit.interpret.trace import Model
from lowbit.interpret.with_quantizers import rule_of
from lowbit.observe import besides
from lowbit.packed import arguments
from lowbit.plan.rows import Plan

from . import curvature, measures
from .candidates import Candidate, candidates_of, decided
from .masked import one_at_a_time
from .scores import Scores
from .taylor import candidate_pass, float_pass

METHODS = ("taylor", "mse", "kl", "loss", "fisher", "hessian", "linearity", "sqnr")
_DRAWN = ("mse", "kl")
_LEVEL, _PROBES = 0.05, 4


def sensitivity(
    fn: Model,
    plan: Plan,
    params: Any,
    batches: Iterable[Any],
    *,
    candidates: Sequence[Any],
    method: str = "taylor",
    loss: Callable[[Any], Any] | str | None = None,
    cache: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Returns a score for every candidate at every operation with a quantized weight: the loss that is expected of it alone.

    * ``"taylor"``: ``sum (g . dy)^2`` over the results ``y`` of the operation, weight and inputs quantized (Gauss-Newton).
    * ``"mse"``, ``"kl"``: the mean squared error, or divergence, of the model's result, one operation quantized at a time;
      ``"loss"``: how much the loss rises.
    * ``"fisher"``: ``sum g^2 dw^2``; ``"hessian"``: the mean of the Hessian's diagonal times ``|dw|^2`` (Hutchinson, HAWQ-v2).
    * ``"linearity"``: ``alpha |dw|^2 / |w|^2``, ``alpha`` fitted with noise on the weight (HIGGS).
    * ``"sqnr"``: ``|dw|^2 / |w|^2``, without data.

    The last four see errors of weights only. Programs that are compiled are one a candidate, however many operations there are.

    Args:
        fn: the function of the plan.
        plan: from `lowbit.bind`; operations with a quantized weight are scored, full-integer plans in float.
        params: float parameters.
        batches: argument tuples; one is in memory at a time, with all operands of the operations.
        candidates: rule texts, quantizers or ``"keep"``; one that says nothing of inputs leaves them as the plan has them.
        method: see above.
        loss: from the result of ``fn`` to a scalar; None: ``fn`` returns one. For ``"taylor"`` and ``"fisher"`` also ``"mse"`` or
            ``"kl"``, without labels: what predicts the error, or the divergence, of the result. ``"mse"`` and ``"kl"`` need none.
        cache: a folder that keeps every finished candidate, by content, so that a run that was stopped goes on; None: nowhere.
        progress: called with the number of candidates done.

    Returns:
        `lowbit.allocate.scores.Scores`: prints as a table, ``.json()``; goes to `lowbit.allocate`.

    Raises:
        TypeError: for arguments of another type.
        ValueError: for no batch, an unknown method, a loss that is no scalar, a score that is not finite, an operation that
            no candidate fits, or a weight that is no parameter where the method needs one.

    Example:
        >>> import lowbit as lb
        >>> params, x = {"a": jnp.eye(4), "b": jnp.array([[1.0], [0.3], [0.2], [0.1]])}, jnp.ones((2, 4))
        >>> fn = lambda p, x: x @ p["a"] @ p["b"]
        >>> plan = lb.bind(fn, {"**": "w8"}, params, x)
        >>> scores = sensitivity(fn, plan, params, [(x,)], candidates=("w2", "w8"), method="mse")
        >>> [[value > 1e-4 for value in row] for row in scores.values]
        [[False, False], [True, False]]
    """
    start = time.perf_counter()
    arguments.check(fn=fn, plan=plan, params=params, progress=progress)
    arguments.check_leaves(plan, params)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    _check_loss(loss, method)
    given = [arguments.batch_of(batch, i) for i, batch in enumerate(arguments.iterated(batches))]
    if not given:
        raise ValueError("batches is empty: sensitivity needs at least one batch")
    for i, batch in enumerate(given):
        arguments.check_call(fn, params, batch, {}, f"batches[{i}]")
    decided(plan)
    ordinary = _ordinary(fn, plan, params, given[0])
    offered = candidates_of(ordinary, candidates)
    rows = decided(ordinary)
    for row in rows:
        if not any(row.path in each.fits for each in offered):
            raise ValueError(f"no candidate of {', '.join(each.name for each in offered)} fits {row.path!r}")
    said = loss if isinstance(loss, str) else "" if loss is None else getattr(loss, "__qualname__", "loss")

    def content() -> Iterator[Any]:
        yield params
        for batch in given:
            y = jax.jit(fn)(params, *batch)
            yield batch, y, loss(y) if callable(loss) else None

    kept = Kept(cache, f"{ordinary.fingerprint} {method} {said}", content)
    work = _Work(fn, ordinary, params, given, method, loss)
    columns = []
    for count, each in enumerate(offered):
        column = kept.load(_file(each.name))
        if column is None:
            scores = dict.fromkeys(each.fits, 0.0)  # what stays in float costs nothing
            if any(row.path in each.fits for row in each.plan.quantized):
                scores |= work.of(each)
            column = {"score": np.array([scores.get(row.path, math.inf) for row in rows], np.float64)}
            kept.keep(_file(each.name), column)
        columns.append(column["score"])
        if progress is not None:
            progress(count + 1)
    table = np.stack(columns, axis=1)
    for r, row in enumerate(rows):
        for c, each in enumerate(offered):
            if row.path in each.fits and not np.isfinite(table[r, c]):
                raise ValueError(
                    f"the score of {row.path!r} with {each.name!r} is {table[r, c]}: check loss and batches"
                )
    values = tuple(map(tuple, table.tolist()))
    return Scores(tuple(row.path for row in rows), tuple(candidates), values, method, time.perf_counter() - start)


def _check_loss(loss: Any, method: str) -> None:
    if isinstance(loss, str):
        if loss not in _DRAWN or method not in ("taylor", "fisher"):
            raise ValueError(
                f"loss must be a function of the result of fn, None, or, for method 'taylor' and 'fisher', one of "
                f"{', '.join(_DRAWN)}; got {loss!r} for {method!r}"
            )
    elif loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of the result of fn, got {loss!r:.40} ({type(loss).__name__})")


def _file(name: str) -> str:
    return "".join(c if c.isalnum() else f"_{ord(c):x}_" for c in name)


def _ordinary(fn: Model, plan: Plan, params: Any, batch: tuple[Any, ...]) -> Plan:
    """The plan, or for a full-integer one that of the same quantizers at the same operations in float."""
    if not plan.is_full_integer:
        return plan
    return bind(fn, {row.path: rule_of(row).quantizers for row in plan.rows}, params, *batch)


class _Work:
    """One method, candidate by candidate; what does not depend on the candidate is computed once."""

    def __init__(self, fn: Model, plan: Plan, params: Any, batches: list[tuple[Any, ...]], method: str, loss: Any):
        self.fn, self.plan, self.params, self.batches, self.method = fn, plan, params, batches, method
        self.loss, self.key = loss, jax.random.key(0)
        self.of = {"taylor": self._taylor, "sqnr": self._noise}.get(
            method, self._measured if method in ("mse", "kl", "loss") else self._curved
        )
        self.numbers: dict[str, Any] | None = None
        self.floats: tuple[int, Any] | None = None

    def _state(self, candidate: Candidate) -> Any:
        return calibrate(self.fn, candidate.plan, self.params, self.batches)

    def _taylor(self, candidate: Candidate) -> dict[str, float]:
        qstate, sums = self._state(candidate), dict.fromkeys(candidate.fits, 0.0)
        run = candidate_pass(self.fn, candidate.plan)
        for i, batch in enumerate(self.batches):
            slopes = jax.device_get(run(self.params, qstate, self._floats(i), batch, {}))
            for path in sums:
                sums[path] += float(slopes.get(path, 0.0)) / len(self.batches)
        return sums

    def _floats(self, i: int) -> Any:
        """Operands, results and gradients of a batch; those of the last one asked for are kept."""
        if self.floats is None or self.floats[0] != i:
            self.floats = None
            loss = measures.drawn_loss(self.loss) if isinstance(self.loss, str) else self.loss
            key = jax.random.fold_in(self.key, i) if isinstance(self.loss, str) else None
            results, turns = float_pass(self.fn, self.plan, loss)(self.params, key, self.batches[i], {})
            besides.check_turns(turns)
            self.floats = i, results
        return self.floats[1]

    def _measured(self, candidate: Candidate) -> dict[str, float]:
        qstate = self._state(candidate)
        paths = [row.path for row in candidate.plan.quantized]
        firsts = {row.weight.key: row.path for row in reversed(candidate.plan.quantized) if row.weight is not None}
        wanted = [path for path in paths if path in candidate.fits]
        masks = {path: np.zeros(len(wanted), np.float32) for path in paths}
        for i, path in enumerate(wanted):
            masks[path][i] = 1.0
            weight = candidate.plan[path].weight
            assert weight is not None
            if weight.kind == "leaf" and firsts[weight.key] != path:
                masks[path][i], masks[firsts[weight.key]][i] = 1.0, 1.0
        measure = {"mse": measures.mse, "kl": measures.kl}.get(self.method) or _rise(self.loss)
        run = one_at_a_time(self.fn, candidate.plan, measure)
        total = sum(np.asarray(run(self.params, qstate, masks, batch, {}), np.float64) for batch in self.batches)
        return dict(zip(wanted, (np.asarray(total) / len(self.batches)).tolist(), strict=True))

    def _noise(self, candidate: Candidate) -> dict[str, float]:
        return self._summed(candidate, lambda key, w, error: jnp.sum(jnp.square(error)) / _power(w))

    def _curved(self, candidate: Candidate) -> dict[str, float]:
        if self.numbers is None:
            self.numbers = self._numbers()
        numbers = self.numbers
        if self.method == "fisher":
            return self._summed(candidate, lambda key, w, error: jnp.sum(numbers[key] * jnp.square(error)))
        if self.method == "hessian":
            return self._summed(candidate, lambda key, w, error: numbers[key] * jnp.sum(jnp.square(error)))
        return self._summed(candidate, lambda key, w, error: numbers[key] * jnp.sum(jnp.square(error)) / _power(w))

    def _numbers(self) -> dict[str, Any]:
        """What is known of every weight before any candidate: squared gradients, traces or slopes."""
        weights = curvature.weights_of(self.plan, self.params)
        total: Any = None
        loss = _fixed(self.loss) if isinstance(self.loss, str) else self.loss
        for i, batch in enumerate(self.batches):
            key = jax.random.fold_in(self.key, i)
            if self.method == "fisher":
                curvatures = curvature.squared_gradients(self.fn, loss)(weights, self.params, batch, {})
            elif self.method == "hessian":
                curvatures = curvature.traces(self.fn, loss, _PROBES)(key, weights, self.params, batch, {})
            else:
                run = curvature.slopes(self.fn, measures.mse if loss is None else _rise(loss), _LEVEL)
                right = jax.jit(self.fn)(self.params, *batch)
                curvatures = {
                    path: run(key, jnp.int32(n), weights, self.params, right, batch, {})
                    for n, path in enumerate(weights)
                }
            total = curvatures if total is None else jax.tree.map(jnp.add, total, curvatures)
        return jax.tree.map(lambda x: x / len(self.batches), total)

    def _summed(self, candidate: Candidate, score: Callable[[str, Any, Any], Any]) -> dict[str, float]:
        """A score for every row from the error of its weight; a shared weight counts at its first row."""
        weights = curvature.weights_of(candidate.plan, self.params)
        by_key = curvature.errors(candidate.plan, self._state(candidate), weights)
        totals, seen = dict.fromkeys(candidate.fits, 0.0), set()
        for row in candidate.plan.quantized:
            if row.path in totals and row.weight is not None and row.weight.key not in seen:
                seen.add(row.weight.key)
                key = row.weight.key
                totals[row.path] = float(score(key, weights[key].astype(jnp.float32), by_key[key]))
        return totals


def _power(w: Any) -> Any:
    return jnp.maximum(jnp.sum(jnp.square(w)), 1e-30)


@functools.lru_cache(maxsize=8)
def _fixed(kind: str) -> Callable[[Any], Any]:
    return functools.partial(measures.drawn_loss(kind), jax.random.key(1))


@functools.lru_cache(maxsize=32)
def _rise(loss: Callable[[Any], Any] | None) -> Callable[[Any, Any], Any]:
    """How much a loss rises from one result to another."""

    def rise(right: Any, other: Any) -> Any:
        before, after = (right, other) if loss is None else (loss(right), loss(other))
        if getattr(after, "shape", None) != ():
            raise ValueError(f"loss must make a scalar of the result of fn, got {jax.tree.map(jnp.shape, after)}")
        return after - before

    return rise
