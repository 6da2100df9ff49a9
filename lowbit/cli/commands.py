"""The commands but ``run``."""

import argparse
import difflib
import os
import subprocess
import sys
from pathlib import Path

from .errors import UsageError


def show(chosen: argparse.Namespace) -> None:
    """Prints what a packed checkpoint holds."""
    from lowbit.packed.files import load
    from lowbit.report.tables import Table, size, text

    path = Path(chosen.checkpoint)
    if not path.is_file():
        raise UsageError(
            f"{path} {'is a folder' if path.is_dir() else 'is no regular file' if path.exists() else 'does not exist'}: give a file that lowbit.save wrote"
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


def formats(chosen: argparse.Namespace) -> None:
    """Prints the table of formats."""
    from lowbit.formats.lookup import format_words, is_format
    from lowbit.report.formats import as_table, format_table
    from lowbit.report.tables import text

    for word in chosen.words:
        name = word.partition("/")[0]
        if not is_format(name):
            near = difflib.get_close_matches(name, format_words(), n=3, cutoff=0.0)
            raise UsageError(f"unknown format {name!r}; nearest: {', '.join(near)}; `lowbit formats` lists all")
    print(text(as_table(format_table(chosen.words or None))))


def verify(chosen: argparse.Namespace) -> int:
    """Prints what every target makes of a bundle, and returns the exit status."""
    from lowbit.export.process import Limits
    from lowbit.export.verify import verify, write_certificate
    from lowbit.report.tables import Table, size, text

    limits = Limits(chosen.wall_seconds, chosen.cpu_seconds, int(chosen.memory_gb * 1e9))
    certificate = verify(chosen.bundle, chosen.targets, run_code=chosen.run_code, limits=limits)
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
        print(f"\nwritten: {write_certificate(certificate)}")
    return 0 if certificate.is_passed else 1


def bench(chosen: argparse.Namespace) -> None:
    """Runs the benchmark of the kernels, or that of a model's operations."""
    if chosen.what is None:
        raise UsageError(
            "bench what? lowbit bench kernels, or lowbit bench operations (each with --help lists its flags)"
        )
    flags = ["--help"] * chosen.help + chosen.flags
    if chosen.what == "operations":
        from .operations import times

        times(flags)
        return
    command = [sys.executable, "-m", "lowbit_kernels.bench", *flags]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    if "BrokenPipeError" in done.stderr:
        raise BrokenPipeError
    if not done.returncode:
        sys.stderr.write(done.stderr)
        return
    *_, last = done.stderr.split("\n\n")[-1].strip().splitlines() or ["it said nothing"]
    text = last.partition(": error: ")[2] or last
    raise UsageError(f"bench kernels stopped with status {done.returncode}: {text} (see lowbit bench kernels --help)")
