"""``lowbit new``, ``sweep``, ``diff`` and ``report``: experiments begun, multiplied and compared."""

import argparse
from pathlib import Path
from typing import Any

from .errors import UsageError
from .running import check, config_path


def add(words: "argparse._SubParsersAction[Any]") -> None:
    """Adds the commands."""
    new = words.add_parser(
        "new",
        help="write a model and a config that run at once",
        description="Write NAME.py, an experiment, and NAME_model.py, its network and data, to be changed into yours.",
        epilog="example: lowbit new mine && lowbit run mine.py",
    )
    new.add_argument("name", metavar="NAME", help="of the experiment: letters, digits and _")
    new.add_argument("--folder", metavar="DIR", default=".", help="where the files go (default: here)")
    new.set_defaults(do=_new)

    sweep = words.add_parser(
        "sweep",
        help="run a config under every combination of some values",
        description=(
            "Every combination is a lowbit run in a folder of its own, DIR/KEY=VALUE,...; running again goes on with what "
            "is not finished. The exit status is 1 where a run failed."
        ),
        epilog="example: lowbit sweep mine.py --grid fit.lr=1e-3,3e-3 --grid seeds=[0,1] --jobs 2",
    )
    sweep.add_argument("config", metavar="CONFIG.py", help="as lowbit run takes it")
    sweep.add_argument(
        "--grid", metavar="KEY=VALUE,...", action="append", required=True,
        help="values of a field; a value with commas stands in brackets; may be repeated",
    )  # fmt: skip
    sweep.add_argument("--out", metavar="DIR", help="folder of the runs (default: sweeps/NAME of the file)")
    sweep.add_argument(
        "--jobs", metavar="N", type=int, default=1, help="runs at a time, of processes here (default: 1)"
    )
    sweep.add_argument("--submitit", metavar="CLUSTER", choices=("local", "slurm"), help="run by submitit's executor")
    sweep.add_argument(
        "--submitit-set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="of its update_parameters; may be repeated",
    )
    sweep.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run by Ray: the address of a cluster, auto, or local for one that --jobs sizes",
    )
    sweep.add_argument(
        "--ray-set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="of its tasks, such as num_gpus=1; may be repeated",
    )
    sweep.add_argument("--without", metavar="EVAL", action="append", default=[], help="leave an eval out")
    sweep.add_argument("--only", metavar="GLOB", action="append", default=[], help="of pieces, as lowbit run takes it")
    sweep.add_argument(
        "--accept-stale", action="store_true", help="take pieces that another commit or other code of lowbit finished"
    )
    sweep.set_defaults(do=_sweep)

    diff = words.add_parser(
        "diff",
        help="show what two runs were asked differently, and what they found",
        description="Compare two folders of lowbit run: configs, commits, versions, and every row. The exit status is 1 where rows differ.",
        epilog="example: lowbit diff runs/demo runs/demo_again",
    )
    diff.add_argument("one", metavar="RUN", help="the folder of a run that ended")
    diff.add_argument("other", metavar="RUN", help="another")
    diff.set_defaults(do=_diff)

    report = words.add_parser(
        "report",
        help="show several runs in one table",
        description="Print a row per method and a column per run.",
        epilog="example: lowbit report sweeps/mine/*",
    )
    report.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs that ended")
    report.set_defaults(do=_report)


def _new(chosen: argparse.Namespace) -> None:
    from lowbit.run import skeleton

    config, model = skeleton.write_skeleton(chosen.name, Path(chosen.folder))
    print(f"{config}\n{model}\nlowbit run {config}")


def _sweep(chosen: argparse.Namespace) -> int:
    from lowbit.run import sweep

    path = config_path(chosen.config)
    asked = sweep.points(chosen.grid)
    out = Path(chosen.out) if chosen.out else Path("sweeps") / path.stem
    if chosen.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, got {chosen.jobs}")
    if chosen.ray and chosen.submitit:
        raise UsageError("--ray and --submitit are two schedulers: give one of them")
    check(path, [point.changes for point in asked], chosen.without, chosen.only)
    words = [
        word for option in ("without", "only") for value in getattr(chosen, option) for word in (f"--{option}", value)
    ]
    words += ["--accept-stale"] if chosen.accept_stale else []
    commands = {point.name: sweep.command(path.resolve(), point, out.resolve(), words) for point in asked}
    print(f"{len(commands)} runs into {out}")
    if chosen.ray:
        options = dict(_parameter(text, "--ray-set") for text in chosen.ray_set)
        statuses = sweep.by_ray(commands, chosen.ray, chosen.jobs, out.resolve() / "logs", options)
    elif chosen.submitit:
        parameters = dict(_parameter(text, "--submitit-set") for text in chosen.submitit_set)
        statuses = sweep.by_submitit(commands, chosen.submitit, out / "logs", parameters)
    else:
        statuses = sweep.by_processes(commands, chosen.jobs, out / "logs")
    summary = sweep.summarized(out, asked, statuses)
    failed = [name for name, status in statuses.items() if status]
    if finished := [out / name for name, line in summary.items() if "rows" in line]:
        _print_table(finished)
    for name in failed:
        print(f"{name} failed: {_last_line(out / 'logs' / f'{name}.log')}({out / 'logs'} has all)")
    return int(bool(failed))


def _last_line(log: Path) -> str:
    """The last line of a log and a space; nothing where there is none, as an executor keeps logs of other names."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((f"{line.strip()} " for line in reversed(lines) if line.strip()), "")


def _parameter(text: str, option: str) -> tuple[str, int | str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise UsageError(
            f"{option} {text}: write KEY=VALUE, such as {'num_gpus=1' if 'ray' in option else 'timeout_min=60'}"
        )
    return key, int(value) if value.isdecimal() else value


def _diff(chosen: argparse.Namespace) -> int:
    from lowbit.report import tables
    from lowbit.run import compare

    asked, rows = compare.diff(Path(chosen.one), Path(chosen.other))
    if asked.rows:
        print(tables.text(asked), end="\n\n")
    print(rows.title)
    print(tables.text(rows))
    return int(any(row[-1] != "same" for row in rows.rows))


def _report(chosen: argparse.Namespace) -> None:
    _print_table([Path(run) for run in chosen.runs])


def _print_table(folders: list[Path]) -> None:
    from lowbit.report import tables
    from lowbit.run import compare

    table = compare.report(folders)
    print(table.title)
    print(tables.text(table))
