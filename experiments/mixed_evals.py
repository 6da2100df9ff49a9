"""What is measured of a mixed plan beside float's, and of the float network how well scores predict it."""

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import lowbit as lb
from experiments.mixed_measures import Compared, per_input
from lowbit.core import atomic
from lowbit.plan.costs import weight_bits
from lowbit.plan.rows import Plan
from lowbit.run import Eval
from lowbit.run.allocating import SCORED
from lowbit.run.evals.column import Column, mean
from lowbit.run.experiment import FLOAT
from lowbit.run.floats import float_outputs
from lowbit.run.folder import TIMES
from lowbit.run.job import calibration
from lowbit.run.pieces import Piece, promised
from lowbit.run.samples import arguments, chosen

ARRAYS = "compared.npz"
"""Of a piece: its logits beside float's by input, as `experiments.mixed_measures.Compared`."""
MEASURED = "measured"
"""What single operations measure, in the place of a score."""


def stored_bits(plan: Plan) -> float:
    """Returns the mean stored bits of the weights that are quantized, scales included."""
    sites = {row.weight.key: row.weight for row in plan.quantized if row.weight is not None}
    return sum(map(weight_bits, sites.values())) / sum(math.prod(site.operand.shape) for site in sites.values())


def compared(right: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray], name: str) -> Eval:
    """Returns an eval: signal to noise and divergence of logits beside float's, and the share of inputs that are right.

    Args:
        right: as of `experiments.mixed.Subject`.
        name: of that share.
    """
    columns = (
        Column("dB", ("dB",), mean(".2f")),
        Column("KL", ("KL",), mean(".4f")),
        Column(name, ("right %",), mean(".1f")),
        Column("stored bits", ("bits",), mean(".2f")),
    )
    return Eval("compared", _Compared(right), columns, folders=())


@dataclasses.dataclass(frozen=True)
class _Compared:
    right: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

    def __call__(self, piece: Piece) -> Mapping[str, Any]:
        classes, unit = piece.job.data.test.labels.T
        outputs, before = piece.executed, float_outputs(piece.job, piece.seed)
        known, asked = classes >= 0, unit >= 0
        right = self.right(outputs[known], before[known], classes[known])
        said = {"right %": 100 * float(np.mean(right))}
        if piece.is_float:
            return said
        found = per_input(outputs[asked], before[asked], unit[asked])
        with atomic.replacing(piece.folder / ARRAYS) as part, part.open("wb") as file:
            np.savez(file, **found._asdict())
        numbers = {"dB": found.decibels, "KL": found.divergence, "bits": stored_bits(piece.plan)}
        return said | numbers | promised(piece)


def arrays_of(piece: Any) -> Compared:
    """Returns what `compared` kept in the folder of a piece."""
    with np.load(piece / ARRAYS) as data:
        return Compared(**data)


def sensitivities(
    rules: Mapping[str, str | lb.Quantizers],
    candidates: tuple[str, ...],
    methods: Mapping[str, tuple[str, Any]],
    measured: int,
) -> Eval:
    """Returns an eval of the float network: a score of every operation and candidate by several methods, and what each measures alone.

    Args:
        rules: that quantize wherever a candidate may.
        candidates: rule texts.
        methods: by name, the method of `lowbit.sensitivity` and its loss.
        measured: batches of compared inputs, which no score has seen, on which single operations are measured: their divergence.
    """
    measure = _Sensitivities(rules, candidates, methods, measured)
    return Eval("sensitivities", measure, methods=(FLOAT,), folders=("run/evals", "allocate"))


@dataclasses.dataclass(frozen=True)
class _Sensitivities:
    rules: Mapping[str, str | lb.Quantizers]
    candidates: tuple[str, ...]
    methods: Mapping[str, tuple[str, Any]]
    measured: int

    def __call__(self, piece: Piece) -> Mapping[str, Any]:
        job, batches = piece.job, calibration(piece.job)
        plan = lb.bind(piece.fn, self.rules, piece.params, piece.state, *batches[0])

        def scored(name: str, given: Any, method: str, loss: Any = None) -> dict[str, Any]:
            spent = time.process_time()
            with job.folder.locked(SCORED):  # another worker may want the same
                scores = lb.sensitivity(
                    piece.fn, plan, piece.params, [(piece.state, *x) for x in given], candidates=self.candidates,
                    method=method, loss=loss, cache=job.folder.path / SCORED,
                    progress=job.screen.start(f"{piece.name} {name}", len(self.candidates)),
                )  # fmt: skip
            return {"scores": json.loads(scores.json()), TIMES: round(time.process_time() - spent, 1)}

        tables = {MEASURED: scored(MEASURED, self._unseen(piece), "kl")}
        return {"sensitivities": tables | {name: scored(name, batches, *asked) for name, asked in self.methods.items()}}

    def _unseen(self, piece: Piece) -> list[Any]:
        """Some batches of the compared inputs, evenly among them."""
        test, size = piece.job.data.test, piece.job.experiment.test_batch
        asked = np.flatnonzero(test.labels[:, 1] >= 0)
        every = [asked[i : i + size] for i in range(0, len(asked), size)]
        some = every[:: max(len(every) // self.measured, 1)][: self.measured]
        return [arguments(chosen(test.inputs, index)) for index in some]
