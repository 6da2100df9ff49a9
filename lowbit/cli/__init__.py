"""The command line. Heavy imports wait until a command needs them."""

import argparse
import contextlib
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Sequence

from lowbit.core.aligned import shown

from . import allocate as _allocate
from . import check as _check
from . import commands as _commands
from . import quantize as _quantize
from . import running as _running
from . import runs as _runs
from .changes import changed as changed
from .errors import UsageError as UsageError
from .errors import in_file_of
from .parsing import Parser

USER_ERRORS = (ValueError, TypeError, OSError, ImportError, FloatingPointError, RuntimeError, MemoryError)
"""What bad input, missing data and missing packages raise; anything else is a defect and keeps its traceback."""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    top = Parser(
        prog="lowbit",
        description="Low-bit quantization in JAX: what you train is what you serve.",
        epilog="example: lowbit run experiments/configs/demo.py --set seeds=0",
    )
    top.add_argument("--version", action="store_true", help="print the version and stop")
    words = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    run = words.add_parser(
        "run",
        help="run an experiment: train, quantize, pack, execute, export, compile, report",
        description=(
            "Run the experiment that a config file describes. The results go to runs/NAME; running again goes on where "
            "a stopped run was, and does not repeat what is finished."
        ),
        epilog="example: lowbit run experiments/configs/demo.py --set seeds=0,1 --set methods.lsq_w4a4.fit.epochs=3",
    )
    run.add_argument(
        "config", metavar="CONFIG.py", help="a Python file that sets config = Experiment(...), from whatever folder"
    )
    run.add_argument(
        "--set", dest="changes", metavar="KEY=VALUE", action="append", default=[],
        help="change a field of the config, such as fit.epochs=2; the type must be that of the field; may be repeated",
    )  # fmt: skip
    run.add_argument("--out", metavar="DIR", help="folder of the results (default: runs/NAME)")
    run.add_argument("--fresh", action="store_true", help="empty the folder first instead of going on")
    run.add_argument(
        "--only",
        metavar="GLOB",
        action="append",
        default=[],
        help="methods, or pieces such as seed-0/*; may be repeated",
    )
    run.add_argument(
        "--without", metavar="EVAL", action="append", default=[], help="leave an eval out; may be repeated"
    )
    run.add_argument("--jobs", metavar="N", type=int, default=1, help="processes that share the pieces (default: 1)")
    run.add_argument(
        "--accept-stale", action="store_true", help="take pieces that another commit or other code of lowbit finished"
    )
    run.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    run.set_defaults(do=_running.run)

    show = words.add_parser(
        "show",
        help="show what a packed checkpoint holds",
        description="Print the plan of a checkpoint that lowbit.save wrote, its sizes and its bits per weight.",
    )
    show.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a file such as runs/demo/seed-0/w4a8/packed.safetensors"
    )
    show.set_defaults(do=_commands.show)

    check = words.add_parser(
        "verify",
        help="run an exported bundle on every target that is installed, and compare with its test vectors",
        description=(
            "Run a bundle that lowbit.export wrote through XLA, StableHLO's interpreter and IREE; print exact or the "
            "largest difference, and the bits per weight of the compiled file. Only regular files that the bundle lists "
            "are opened, no custom call is compiled, and source code of the bundle is left alone without --run-code: its "
            "targets are then 'not run'. Each target has a process of its own with the limits below; that isolates "
            "nothing. The exit status is 0 where something was compared and all that ran passed, 1 where a target "
            "differs, fails, or holds wider weights, or nothing ran, 2 where the bundle or the request is refused."
        ),
        epilog="example: lowbit verify runs/demo/seed-0/w4a8/export --target iree --json",
    )
    check.add_argument("bundle", metavar="BUNDLE", help="a folder that lowbit.export wrote")
    check.add_argument(
        "--target", dest="targets", metavar="NAME", action="append", help="a target; may be repeated (default: all but slow)"
    )  # fmt: skip
    check.add_argument(
        "--run-code", action="store_true", help="also compile and run the bundle's own C: only if you trust who made it"
    )
    check.add_argument("--wall-seconds", metavar="N", type=float, default=900.0, help="of each target (default: 900)")
    check.add_argument("--cpu-seconds", metavar="N", type=float, default=1800.0, help="of each target (default: 1800)")
    check.add_argument("--memory-gb", metavar="N", type=float, default=16.0, help="of each target (default: 16)")
    check.add_argument("--json", action="store_true", help="also write certificate.json into the bundle")
    check.set_defaults(do=_commands.verify)

    quantize = words.add_parser(
        "quantize",
        help="quantize a float model after training: packed bits, a bundle for other compilers, a report",
        description=(
            "Quantize the model that a function of a Python file builds. It returns fn, params, state; fn, params; a linen "
            "module with its variables; or an nnx model. --data names a function that yields tuples of arguments. The folder "
            "gets packed.safetensors, report.json and, where asked for, report.html and export/. Running again after a "
            "stop goes on; nothing that is solved is solved again."
        ),
        epilog="example: lowbit quantize my_model.py:build --data my_model.py:batches --rules w4,a8 --recipe gptq --out out",
    )
    quantize.add_argument("model", metavar="FILE.py:FUNCTION", help="what builds the model")
    quantize.add_argument("--data", metavar="FILE.py:FUNCTION", required=True, help="what yields calibration batches")
    quantize.add_argument(
        "--rules", metavar="[GLOB=]RULE", action="append", required=True,
        help="such as w4,a8, or head/*=w8,a8 before it; may be repeated, the first that matches wins",
    )  # fmt: skip
    quantize.add_argument("--recipe", metavar="NAME", default="auto", help="rtn, gptq, ... (default: auto)")
    quantize.add_argument("--out", metavar="DIR", required=True, help="folder of the results")
    quantize.add_argument("--targets", metavar="NAME,...", help="also export a bundle that these targets can take")
    quantize.add_argument("--report", action="store_true", help="also write report.html")
    quantize.set_defaults(do=_quantize.quantize)

    _runs.add(words)
    _allocate.add(words)

    laws = words.add_parser(
        "check",
        help="check what any tool rounded against the laws of rounding: float weights, inputs, codes and scales from files",
        description=(
            "Recompute errors from arrays called weight [K, N], codes, scales [groups, N] and, where there are, inputs "
            "[rows, K], zeros and values, in .npz or .safetensors files: the error over that of rounding to nearest beside "
            "GPTQ's law, Babai's bound, scales, codes at an end, stored bits. The exit status is 1 where a law fails."
        ),
        epilog="example: lowbit check layer.npz --bits 4",
    )
    laws.add_argument("files", metavar="FILE", nargs="+", help=".npz or .safetensors")
    laws.add_argument("--bits", metavar="N", type=int, required=True, help="of a code")
    laws.add_argument("--transposed", action="store_true", help="arrays are [N, K], as PyTorch and LiteRT have them")
    laws.add_argument("--damping", metavar="X", type=float, default=0.01, help="of the second moment (default: 0.01)")
    laws.set_defaults(do=_check.check)

    formats = words.add_parser(
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
    formats.set_defaults(do=_commands.formats)

    for each in words.choices.values():
        each.add_argument("--traceback", action="store_true", help="show where an error came from")

    bench = words.add_parser(
        "bench",
        help="time the packed kernels beside their peers, or a model's operations with every candidate, on this machine",
        description=(
            "kernels: run python -m lowbit_kernels.bench: kernels, ONNX Runtime, torch and XLA, interleaved (those not installed "
            "are left out, by name); with --tune, time and check the kernels' options and write the table they read. "
            "operations: time every operation of a model alone with every candidate, and keep the times in this machine's table, "
            "which lowbit allocate --milliseconds reads."
        ),
        epilog="examples: lowbit bench kernels --tune --case w4a8; "
        "lowbit bench operations model.py:build --data model.py:batches --candidate w8,a8; each has --help of its own",
        add_help=False,
    )
    bench.add_argument("-h", "--help", action="store_true", help="show this text, or that of what is timed")
    bench.add_argument("what", choices=("kernels", "operations"), nargs="?", help="what to time")
    bench.add_argument("flags", nargs=argparse.REMAINDER, help="flags of it")
    bench.set_defaults(do=_commands.bench)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit status.

    0; 1 for a failed check; 2, and one line on standard error, for a wrong request or a full disk; 130 when stopped; 141, in
    silence, where the reader of its output went away.

    Args:
        arguments: the words after ``lowbit``; those of the process by default.
    """
    try:
        status = _done(arguments)
        _flush()  # a full disk, or a reader that went away, may be seen only here
    except SystemExit:  # argparse, after the text of --help
        try:
            _flush()
        except OSError as error:
            _silence()
            return 141 if isinstance(error, BrokenPipeError) else _fail(error)
        raise
    except BrokenPipeError:
        _silence()
        return 141  # as a program that SIGPIPE ends
    except OSError as error:
        return _fail(error)
    return status


def _done(arguments: Sequence[str] | None) -> int:
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
    except BrokenPipeError:
        raise
    except UsageError as error:
        return _fail(error)
    except USER_ERRORS as error:
        if getattr(chosen, "traceback", False):
            traceback.print_exc()
        return _fail(error)
    except KeyboardInterrupt:
        _say("stopped; the same command goes on from here")
        return 130
    except BaseException as error:
        if (said := in_file_of(error, sys.argv[1:] if arguments is None else arguments)) is None:
            raise
        if getattr(chosen, "traceback", False):
            traceback.print_exc()
        return _fail(UsageError(said))
    return 0


def _fail(error: BaseException) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    _say(text)
    try:
        _flush()
    except OSError:
        _silence()
    return 2


def _flush() -> None:
    if sys.stdout is not None:  # the process was started without one: nothing is waiting
        sys.stdout.flush()


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens: the status says it
        print(f"lowbit: {shown(text)}", file=sys.stderr)


def _silence() -> None:
    """Sends what standard output still holds nowhere: written again when Python ends, it would fail again, with a traceback."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
