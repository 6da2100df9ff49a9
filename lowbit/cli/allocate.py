"""``lowbit allocate``: bits for every operation of a float model in a Python file, under a budget."""

import argparse
import json
from pathlib import Path
from typing import Any

from .errors import UsageError
from .parsing import add_candidates
from .quantize import _function, _model, _rules, _screen

UNITS = ("bits", "bytes", "macs", "bops", "milliseconds", "flash", "ram")


def add(words: "argparse._SubParsersAction[Any]") -> None:
    """Adds the command."""
    parser = words.add_parser(
        "allocate",
        help="choose bits for every operation of a float model under a budget",
        description=(
            "Score every candidate at every operation of the model that a function of a Python file builds, as lowbit quantize "
            "takes it, and choose exactly under all budgets given. The folder gets packed.safetensors (rounded to nearest), "
            "rules.json (for lowbit.quantize), scores.json, front.json and, where asked for, report.html. Running again after a "
            "stop goes on."
        ),
        epilog="example: lowbit allocate model.py:build --data model.py:batches --candidate w2/g32 --candidate w4 --bits 3.5 --out out",
    )
    add_candidates(parser, "what yields calibration batches")
    parser.add_argument("--method", metavar="NAME", default="taylor", help="of lowbit.sensitivity (default: taylor)")
    parser.add_argument(
        "--loss", metavar="FILE.py:FUNCTION|mse|kl", help="of the model's result (default for taylor and fisher: mse, without labels)"
    )  # fmt: skip
    for unit in UNITS:
        parser.add_argument(f"--{unit}", metavar="N", type=float, help=f"budget of {unit}")
    parser.add_argument("--target", metavar="NAME", help="only what this target holds")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the results")
    parser.add_argument("--report", action="store_true", help="also write report.html, and its pictures as PNG")
    parser.set_defaults(do=allocate)


def allocate(chosen: argparse.Namespace) -> None:
    """Allocates bits in the model of ``FILE.py:FUNCTION``."""
    import lowbit as lb
    from lowbit.allocate.candidates import candidates_of, decided
    from lowbit.allocate.choose import allocation, check_budget
    from lowbit.allocate.latency import measured
    from lowbit.core import atomic

    budget = lb.budget(**{unit: value for unit in UNITS if (value := getattr(chosen, unit)) is not None})
    rules = _rules(chosen.rules or [])
    rules.setdefault("**", chosen.candidate[-1])
    build, data = _function(chosen.model, "model"), _function(chosen.data, "--data")
    fn, params, state = _model(build(), chosen.model)
    lead = () if state is None else (state,)
    batches = [(*lead, *batch) for batch in data()]
    if not batches:
        raise UsageError(f"{chosen.data} yields no batch")
    out = Path(chosen.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file: choose a folder")
    out.mkdir(parents=True, exist_ok=True)
    loss = chosen.loss or ("mse" if chosen.method in ("taylor", "fisher") else None)
    if loss not in (None, "mse", "kl"):
        loss = _function(loss, "--loss")
    plan = lb.bind(fn, rules, params, *batches[0], integer=chosen.integer)
    check_budget(
        plan, chosen.candidate, budget, target=chosen.target
    )  # scores take minutes: what cannot be is said first
    with _screen() as progress:
        scores = lb.sensitivity(
            fn, plan, params, batches, candidates=chosen.candidate, method=chosen.method, loss=loss, cache=out / "scored",
            progress=lambda done: progress("candidates", done, len(chosen.candidate)),
        )  # fmt: skip
        times = None
        if chosen.milliseconds is not None:
            rows = decided(plan)
            times = measured(
                rows, candidates_of(plan, scores.candidates, chosen.target),
                progress=lambda done: progress("times", done, len(rows)),
            )  # fmt: skip
        allocated = allocation(plan, scores, budget=budget, target=chosen.target, times=times)
        unit = next(iter(budget.limits))
        front = lb.pareto(
            plan,
            scores,
            unit=unit,
            target=chosen.target,
            times=times,
            progress=lambda done: progress("front", done, 24),
        )
    qparams = lb.pack(allocated.plan, params, lb.calibrate(fn, allocated.plan, params, batches))
    size = lb.save(out / "packed.safetensors", allocated.plan, qparams)
    atomic.write_file(out / "scores.json", scores.json() + "\n")
    atomic.write_file(out / "front.json", front.json() + "\n")
    atomic.write_file(out / "rules.json", json.dumps(allocated.choice, indent=1) + "\n")
    print(allocated)
    for path, name in allocated.choice.items():
        print(f"  {path}={name}")
    print(f"\n{out / 'packed.safetensors'}: {size:,} bytes")
    if chosen.report:
        from lowbit.report.allocation import allocation_page

        atomic.write_file(
            out / "report.html", allocation_page(allocated, scores, front, title=chosen.model, folder=out)
        )
        print(out / "report.html")
