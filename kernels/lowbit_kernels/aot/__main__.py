"""The command line of `lowbit_kernels.aot`."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence

from lowbit_kernels.aot import cuda, report, tpu

BACKENDS = {backend.name: backend for backend in (cuda.BACKEND, tpu.BACKEND)}


def main(
    arguments: Sequence[str] | None = None,
    backends: Mapping[str, report.Backend] = BACKENDS,
    module: str = "lowbit_kernels.aot",
) -> int:
    """0 where every case is as good as its golden report, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}", description="Compiles the kernels without a device, compares with golden."
    )
    parser.add_argument("backend", choices=sorted(backends))
    parser.add_argument("--update", action="store_true", help="write the golden file instead of comparing with it")
    parser.add_argument("--target", default="", help="only this chip")
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--seconds", type=float, default=300, help="that a case may take")
    parser.add_argument("--one", nargs=3, metavar=("TARGET", "CASE", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    backend = backends[args.backend]
    if args.one:
        print(json.dumps(dataclasses.asdict(backend.compile_case(*args.one))))
        return 0
    targets = tuple(target for target in backend.targets if args.target in ("", target))
    cases = tuple(case for case in backend.cases if args.case in case)
    if not targets or not cases:
        parser.error(f"nothing to compile; the targets are {backend.targets}, the cases {backend.cases}")
    if args.update and (args.target or args.case):
        parser.error("--update writes every case: leave --target and --case out")
    versions = backend.versions()
    print(f"{args.backend}: {len(targets)} targets, {len(cases)} cases, {versions}", flush=True)
    reports = report.compile_all(backend, targets, cases, jobs=args.jobs, seconds=args.seconds, show=_show)
    if args.update:
        report.write_golden(backend, reports)
        print(f"wrote {report.golden_path(backend).name}")
        return 0
    golden_versions, golden = report.read_golden(backend)
    lines = report.differences(reports, golden, backend.tolerance)
    if versions != golden_versions:
        lines.insert(0, f"versions are {versions}, the golden reports were made with {golden_versions}")
    print("\n".join(lines) or "every case is as good as its golden report")
    return 1 if lines else 0


def _show(target: str, case: str, one: report.Report) -> None:
    numbers = ", ".join(f"{name} {value}" for name, value in one.metrics.items())
    print(f"{target:<6} {case:<46} {'ok  ' + numbers if one.ok else f'FAILS in {one.stage}: {one.error}'}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
