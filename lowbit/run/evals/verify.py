"""A plan on every export target that takes it, verified there."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lowbit as lb
from lowbit.export import installed
from lowbit.export.bundle import Bundle
from lowbit.export.runners import runners
from lowbit.export.verify import Verdict
from lowbit.export.verify import verify as verified
from lowbit.plan.rows import Plan
from lowbit.run.pieces import Piece
from lowbit.targets.refusals import check
from lowbit.targets.table import TARGETS

from .column import Eval

REFUSED = "refused"
"""The status of a target that cannot hold a plan; the others are those of `lowbit.export.verify.Verdict`."""


def verify(targets: Sequence[str] | None = None, *, batch: int = 1) -> Eval:
    """Returns an eval: every plan exported for every target that takes it, run there and compared with `lowbit.execute`.

    Under ``targets`` stands a row per target: what was found, or why it was refused or not run.

    Args:
        targets: their names; None: all that anything runs.
        batch: samples of a call; outputs of all of them are compared.

    Raises:
        ValueError: for an unknown target, or a batch below 1.
    """
    names = tuple(runners() if targets is None else targets)
    if unknown := [name for name in names if name not in runners()]:
        raise ValueError(f"targets: nothing runs {unknown[0]!r}; there are {', '.join(runners())}")
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    return Eval("verify", _Verify(names, batch), depends=functools.partial(tools, names))


def tools(names: Sequence[str]) -> dict[str, str]:
    """Returns by target its tool, or what is missing of it."""
    targets = (TARGETS[name] for name in names)
    return {t.name: f"without {needed}" if (needed := installed.missing(t)) else installed.version(t) for t in targets}


@dataclasses.dataclass(frozen=True)
class _Verify:
    names: tuple[str, ...]
    batch: int

    def __call__(self, piece: Piece) -> Mapping[str, Any]:
        if piece.is_float:
            return {}
        args, place = (piece.state, *piece.example(self.batch)), piece.folder / "export"

        def export(targets: Sequence[str]) -> Bundle:
            return lb.export(
                piece.fn, piece.plan, piece.qparams, args, place, integer_io=piece.method.integer, targets=targets
            )

        rows, names = _asked(piece.plan, self.names)
        piece.job.screen.start(f"{piece.name} export")
        bundle, refusals = _exported(export, names)
        rows |= {name: {"status": REFUSED, "detail": reason} for name, reason in refusals.items()}
        piece.job.screen.start(f"{piece.name} verify")
        rows |= {row.target: _kept(row) for row in verified(bundle.path, run_code=True).rows}
        return {"targets": {name: rows[name] for name in self.names}}


def _asked(plan: Plan, asked: Sequence[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The targets that are not installed, or refuse a plan by the table of targets; and the others."""
    rows: dict[str, dict[str, Any]] = {}
    names = []
    for name in asked:
        target = TARGETS[name]
        try:
            check(plan, [target])
        except ValueError as error:
            rows[name] = {"status": REFUSED, "detail": str(error)}
            continue
        if needed := installed.missing(target):
            rows[name] = {"status": "not run", "detail": f"{needed} is not installed: {target.install}"}
        else:
            names.append(name)
    return rows, names


def _exported(export: Callable[[Sequence[str]], Bundle], names: Sequence[str]) -> tuple[Bundle, dict[str, str]]:
    """The bundle for the targets whose forms can hold the model, and by target what the others say."""
    try:
        return export(names), {}
    except ValueError:
        refusals: dict[str, str] = {}
    for form in dict.fromkeys(TARGETS[name].form for name in names):
        takers = [name for name in names if TARGETS[name].form == form]
        try:
            export(takers)
        except ValueError as error:
            refusals |= dict.fromkeys(takers, str(error))
    return export([name for name in names if name not in refusals]), refusals


def _kept(row: Verdict) -> dict[str, Any]:
    """A row of the certificate as it is kept: without what was not found."""
    names = ("difference", "unit", "share", "rounding", "bytes", "bits_per_weight", "detail")
    fields = {name: getattr(row, name) for name in names} | {"measured": dict(row.measured)}
    return {"status": row.status} | {name: value for name, value in fields.items() if value not in (None, "", {})}
