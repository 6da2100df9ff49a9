"""The command line. Heavy imports wait until a command needs them."""

import argparse
import ast
import dataclasses
import difflib
import importlib.metadata
import importlib.util
import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, RuntimeError)
"""What bad input, missing data and missing packages raise; anything else is a defect and keeps its traceback."""


class UsageError(Exception):
    """Something the user typed; its text is one line that says what to do."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        name = self.prog
        raise UsageError(f"{message} (see {name} --help)")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    top = _Parser(
        prog="lowbit",
        description="Low-bit quantization in JAX: what you train is what you serve.",
        epilog="example: lowbit run experiments/configs/demo.py --set seeds=0",
    )
    top.add_argument("--version", action="store_true", help="print the version and stop")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser(
        "run",
        help="run an experiment: train, quantize, pack, execute, export, compile, report",
        description=(
            "Run the experiment that a config file describes. The results go to runs/NAME; running again goes on where "
            "a stopped run was, and does not repeat what is finished."
        ),
        epilog="example: lowbit run experiments/configs/demo.py --set seeds=0,1 --set methods.lsq_w4a4.fit.epochs=3",
    )
    run.add_argument("config", metavar="CONFIG.py", help="a Python file that exposes config and run")
    run.add_argument(
        "--set", dest="changes", metavar="KEY=VALUE", action="append", default=[],
        help="change a field of the config, such as fit.epochs=2; the type must be that of the field; may be repeated",
    )  # fmt: skip
    run.add_argument("--out", metavar="DIR", help="folder of the results (default: runs/NAME)")
    run.add_argument("--fresh", action="store_true", help="empty the folder first instead of going on")
    run.add_argument("--traceback", action="store_true", help="show where an error came from")
    run.set_defaults(do=_run)

    show = commands.add_parser(
        "show",
        help="show what a packed checkpoint holds",
        description="Print the plan of a checkpoint that lowbit.save wrote, its sizes and its bits per weight.",
    )
    show.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a file such as runs/demo/seed-0/w4a8/packed.safetensors"
    )
    show.add_argument("--traceback", action="store_true", help="show where an error came from")
    show.set_defaults(do=_show)

    check = commands.add_parser(
        "verify",
        help="run an exported bundle on every target that is installed, and compare with its test vectors",
        description=(
            "Run a bundle that lowbit.export wrote through XLA, StableHLO's interpreter and IREE; print exact or the "
            "largest difference, and the bits per weight of the compiled file. The exit status is 1 where a target "
            "differs, fails, or holds wider weights."
        ),
        epilog="example: lowbit verify runs/demo/seed-0/w4a8/export --target iree --json",
    )
    check.add_argument("bundle", metavar="BUNDLE", help="a folder that lowbit.export wrote")
    check.add_argument(
        "--target", dest="targets", metavar="NAME", action="append", help="a target; may be repeated (default: all but slow)"
    )  # fmt: skip
    check.add_argument("--json", action="store_true", help="also write certificate.json into the bundle")
    check.add_argument("--traceback", action="store_true", help="show where an error came from")
    check.set_defaults(do=_verify)

    formats = commands.add_parser(
        "formats",
        help="list the number formats: bits with scales, levels, ranges, errors",
        description=(
            "Print what every number format costs and how well it does: bits per element with scales, levels, largest "
            "and smallest level, and the signal to noise ratio on normal and Laplace data (of magnitudes, for formats "
            "without negative levels): under its own scales, and under the best single scale. All of it is computed. "
            "Formats without blocks of their own get groups of 128 and float32 scales."
        ),
        epilog="example: lowbit formats int4 nf4 int4/g32/bfloat16",
    )
    formats.add_argument("words", metavar="FORMAT", nargs="*", help="a format, with options or without (default: all)")
    formats.add_argument("--traceback", action="store_true", help="show where an error came from")
    formats.set_defaults(do=_formats)

    bench = commands.add_parser(
        "bench",
        help="time the packed kernels beside their peers, and tune them for this machine",
        description=(
            "Run python -m lowbit_kernels.bench: kernels, ONNX Runtime, torch and XLA, interleaved (those not installed "
            "are left out, by name). With --tune: time and check the kernels' options and write the table they read."
        ),
        epilog="example: lowbit bench kernels --tune --case w4a8; lowbit bench kernels --help lists the flags",
        add_help=False,
    )
    bench.add_argument("-h", "--help", action="store_true", help="show this text, or that of kernels")
    bench.add_argument("what", choices=("kernels",), nargs="?", help="what to time")
    bench.add_argument("flags", nargs=argparse.REMAINDER, help="flags of python -m lowbit_kernels.bench")
    bench.set_defaults(do=_bench)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status: 0, 1 for a failed check, 2 for a wrong request, 130 when stopped.

    Args:
        arguments: the words after ``lowbit``; those of the process by default.
    """
    chosen: argparse.Namespace | None = None
    try:
        top = parser()
        chosen = top.parse_args(arguments)
        if chosen.version:
            print(f"lowbit {importlib.metadata.version('lowbit')}")
        elif chosen.command is None:
            top.print_help()
        else:
            return chosen.do(chosen) or 0
    except UsageError as error:
        return _fail(error)
    except USER_ERRORS as error:
        if getattr(chosen, "traceback", False):
            traceback.print_exc()
        return _fail(error)
    except KeyboardInterrupt:
        print("\nlowbit: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _fail(error: BaseException) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.filename}: {error.strerror}"
    print(f"lowbit: {text}", file=sys.stderr)
    return 2


def _run(chosen: argparse.Namespace) -> None:
    _avoid_wrong_pooling()
    path = _config_path(chosen.config)
    module = _executed(path)
    if "config" not in module:
        raise UsageError(f"{path} does not set config = Config(...): see experiments/configs/demo.py")
    if not callable(module.get("run")):
        raise UsageError(f"{path} has no run function: add from experiments.job import run as run")
    config = changed(module["config"], chosen.changes)
    out = Path(chosen.out) if chosen.out else Path("runs") / config.name
    module["run"](config, out, fresh=chosen.fresh)


def _avoid_wrong_pooling() -> None:
    """Tells XLA not to fuse reductions into its CPU library calls, where that is wrong and nobody chose otherwise.

    In jax 0.10, XLA's CPU backend compiles a max-pool after two residual convolution blocks to other numbers (off by 1.5
    where the values reach 5; op by op, in IREE and in jax 0.12 they are right). XLA reads this when its backend starts.
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    flags = os.environ.get("XLA_FLAGS", "")
    if importlib.metadata.version("jaxlib").startswith("0.10.") and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}=-LIBRARY_FUSION_TYPE_REDUCE".strip()


def _config_path(given: str) -> Path:
    path = Path(given)
    if path.is_file():
        if path.suffix != ".py":
            raise UsageError(
                f"{given} is not a Python file: a config is a .py file, such as experiments/configs/demo.py"
            )
        return path
    folder = path.parent if path.parent.is_dir() and str(path.parent) != "." else Path("experiments/configs")
    known = sorted(str(p) for p in folder.glob("*.py") if not p.name.startswith("_"))
    near = difflib.get_close_matches(str(folder / path.name), known, n=3, cutoff=0.5) or known[:5]
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "give the path of a config file, such as experiments/configs/demo.py"
    )
    reason = "is a folder" if path.is_dir() else "does not exist"
    raise UsageError(f"{given} {reason}: {hint}")


def _executed(path: Path) -> dict[str, Any]:
    """The globals of a config file, run with the folder that holds ``experiments`` in reach."""
    for root in (*path.resolve().parents, Path.cwd()):
        if (root / "experiments" / "__init__.py").is_file():
            sys.path.insert(0, str(root))
            break
    try:
        return runpy.run_path(str(path), run_name="lowbit_config")
    except SyntaxError as error:
        raise UsageError(f"{error.filename or path}, line {error.lineno}: {error.msg}") from error
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "experiments":
            found = (
                "run inside the repository"
                if importlib.util.find_spec("experiments") is None
                else "there is no such file"
            )
            raise UsageError(f"{path} imports {error.name}: {found}") from error
        raise UsageError(f"{path} needs {error.name}: pip install 'lowbit[experiments]'") from error
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = f", line {frames[-1].lineno}" if frames else ""
        raise UsageError(f"{path}{line}: {type(error).__name__}: {error}") from error


def changed(config: Any, changes: Sequence[str]) -> Any:
    """Returns a config with ``KEY=VALUE`` changes made.

    A key is a field, or a path of fields: ``fit.epochs``; items of a tuple of named things go by name:
    ``methods.lsq_w4a4.fit.lr``. The value must be of the type that the field has now.

    Args:
        config: a frozen dataclass.
        changes: texts such as ``seeds=0,1``.

    Raises:
        UsageError: for an unknown key (the nearest are named), a wrong type, or a value the config refuses.
    """
    for change in changes:
        key, sign, text = change.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set {change}: write KEY=VALUE, such as --set seeds=0,1")
        try:
            config = _replaced(config, key.strip().split("."), text.strip(), key.strip())
        except (ValueError, TypeError) as error:
            raise UsageError(f"--set {change}: {error}") from error
    return config


def _replaced(value: Any, names: Sequence[str], text: str, key: str) -> Any:
    name, rest = names[0], names[1:]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        _check_known(name, known, key, names)
        new = _replaced(known[name], rest, text, key) if rest else _parsed(known[name], text, key)
        return dataclasses.replace(value, **{name: new})
    if isinstance(value, tuple) and value and all(hasattr(item, "name") for item in value):
        known = {item.name: i for i, item in enumerate(value)}
        _check_known(name, known, key, names)
        if not rest:
            raise UsageError(
                f"--set {key}: {name} is a whole part; name a field of it, such as {key}.{_first_field(value[known[name]])}"
            )
        items = list(value)
        items[known[name]] = _replaced(items[known[name]], rest, text, key)
        return tuple(items)
    raise UsageError(f"--set {key}: there is nothing called {name} in {value!r}")


def _first_field(value: Any) -> str:
    return dataclasses.fields(value)[-1].name if dataclasses.is_dataclass(value) else "name"


def _check_known(name: str, known: dict[str, Any], key: str, names: Sequence[str]) -> None:
    if name not in known:
        prefix = key[: len(key) - len(".".join(names))]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise UsageError(f"--set {key}: no field {prefix}{name}; nearest: {', '.join(prefix + n for n in near)}")


def _parsed(now: Any, text: str, key: str) -> Any:
    """``text`` as a value of the type of ``now``."""
    if isinstance(now, bool):
        if text not in ("True", "False"):
            raise UsageError(f"--set {key}={text}: must be True or False")
        return text == "True"
    if isinstance(now, str):
        return text
    if isinstance(now, tuple):
        kinds = {type(item) for item in now}
        if not kinds <= {int, float, str} or len(kinds) > 1:
            raise UsageError(f"--set {key}: this field cannot be set from the command line; write a config file")
        like = now[0] if now else 0
        return tuple(_parsed(like, part.strip(), key) for part in text.strip("()[] ").rstrip(",").split(","))
    if isinstance(now, int | float):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = None
        if type(value) is int and isinstance(now, float):
            value = float(value)
        if type(value) is not type(now):
            kind = {int: "a whole number", float: "a number"}[type(now)]
            raise UsageError(f"--set {key}={text}: must be {kind}, such as {now}")
        return value
    raise UsageError(f"--set {key}: this field cannot be set from the command line; write a config file")


def _show(chosen: argparse.Namespace) -> None:
    from lowbit.packed.files import load
    from lowbit.report.tables import Table, size, text

    path = Path(chosen.checkpoint)
    if not path.is_file():
        raise UsageError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}: give a file that lowbit.save wrote"
        )
    plan, qparams = load(path)
    rows = [
        [name, q.spec.text, "x".join(map(str, q.shape)), size(q.nbytes), f"{q.bits_per_element:.3f}"]
        for name, q in qparams.weights().items()
    ]
    print(plan)
    print()
    print(text(Table("weights", ["packed weight", "spec", "shape", "bytes", "bits/w"], rows)))
    packed = sum(q.nbytes for q in qparams.weights().values())
    print(
        f"\n{size(os.path.getsize(path))} on disk, {size(qparams.nbytes)} of arrays: {size(packed)} packed weights "
        f"({qparams.bits_per_weight:.3f} bits each, scales included), {size(qparams.nbytes - packed)} the rest"
    )


def _formats(chosen: argparse.Namespace) -> None:
    from lowbit.formats.lookup import format_words, is_format
    from lowbit.report.formats import as_table, format_table
    from lowbit.report.tables import text

    for word in chosen.words:
        name = word.partition("/")[0]
        if not is_format(name):
            near = difflib.get_close_matches(name, format_words(), n=3, cutoff=0.0)
            raise UsageError(f"unknown format {name!r}; nearest: {', '.join(near)}; `lowbit formats` lists all")
    print(text(as_table(format_table(chosen.words or None))))


def _verify(chosen: argparse.Namespace) -> int:
    from lowbit.export.verify import verify, write
    from lowbit.report.tables import Table, size, text

    certificate = verify(chosen.bundle, chosen.targets)
    rows = [
        [
            row.target,
            row.status,
            "-" if row.difference is None else f"{row.difference:.3g} {row.unit}",
            "-" if row.bytes is None else size(row.bytes),
            "-" if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}",
            row.version,
            "; ".join(
                [*(f"{number:,.6g} {name}" for name, number in row.measured.items()), *filter(None, [row.detail])]
            ),
        ]
        for row in certificate.rows
    ]
    columns = ["target", "result", "difference", "compiled", "bits/w", "tool", "note"]
    print(text(Table("targets", columns, rows)))
    if chosen.json:
        print(f"\nwritten: {write(certificate)}")
    return 0 if certificate.is_passed else 1


def _bench(chosen: argparse.Namespace) -> None:
    import subprocess

    if chosen.what is None:
        raise UsageError("bench what? lowbit bench kernels (lowbit bench kernels --help lists the flags)")
    flags = ["--help"] * chosen.help + chosen.flags
    done = subprocess.run([sys.executable, "-m", "lowbit_kernels.bench", *flags], check=False)
    if done.returncode:
        raise UsageError(f"python -m lowbit_kernels.bench stopped with status {done.returncode}")


if __name__ == "__main__":
    sys.exit(main())
