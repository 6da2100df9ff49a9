"""``lowbit bench operations``: milliseconds of every operation of a model with every candidate, on this machine."""

from collections.abc import Sequence

from .errors import UsageError
from .parsing import Parser, add_candidates
from .quantize import _function, _model, _rules, _screen

FLOAT = "keep"
"""The candidate that leaves an operation in floats; the others are timed beside it."""


def times(flags: Sequence[str]) -> None:
    """Times the operations of the model of ``FILE.py:FUNCTION`` and prints them; this machine's table keeps them."""
    import lowbit as lb
    from lowbit.allocate.candidates import candidates_of, decided
    from lowbit.allocate.latency import measured
    from lowbit.allocate.timetable import Timetable
    from lowbit.report.tables import Table, text

    chosen = _parser().parse_args(flags)
    rules = _rules(chosen.rules or [])
    rules.setdefault("**", chosen.candidate[0])
    build, data = _function(chosen.model, "model"), _function(chosen.data, "--data")
    fn, params, state = _model(build(), chosen.model)
    batch = next(iter(data()), None)
    if batch is None:
        raise UsageError(f"{chosen.data} yields no batch")
    plan = lb.bind(fn, rules, params, *(() if state is None else (state,)), *batch, integer=chosen.integer)
    rows = decided(plan)
    candidates = candidates_of(plan, tuple(dict.fromkeys((FLOAT, *chosen.candidate))))
    with _screen() as progress:
        ms = measured(
            rows, candidates, again=chosen.again, progress=lambda done: progress("operations", done, len(rows))
        )
    lines = [
        [path, *(f"{by_name[c.name]:.4f}" if c.name in by_name else "-" for c in candidates)]
        for path, by_name in ms.items()
    ]
    shared = [by_name for by_name in ms.values() if len(by_name) == len(candidates)]
    total = ["all that every candidate fits", *(f"{sum(by[c.name] for by in shared):.4f}" for c in candidates)]
    heads = ("operation", *("float" if c.name == FLOAT else c.name for c in candidates))
    print("milliseconds of every operation alone, the least of ten runs\n")
    print(text(Table("", heads, [*lines, total])))
    table = Timetable()
    print(f"\n{table.path}: {len(table)} times of this machine")


def _parser() -> Parser:
    parser = Parser(
        prog="lowbit bench operations",
        description=(
            "Time every operation of the model that a function of a Python file builds, alone, in floats and with every candidate, "
            "on the kernel that lowbit.execute runs. Times are kept in a table of this machine, in $LOWBIT_TIMETABLE or the user's "
            "cache folder, which budgets of milliseconds read: what it lacks is measured then. Run it while nothing else computes."
        ),
        epilog="example: lowbit bench operations model.py:build --data model.py:batches --candidate w4/g32 --candidate w8,a8",
    )
    add_candidates(parser, "what yields batches; the first gives the shapes")
    parser.add_argument("--again", action="store_true", help="measure what the table holds too, and replace it")
    return parser
