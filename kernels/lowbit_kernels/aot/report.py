"""One compilation as a record, run in a process of its own, and records compared with golden ones."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

STAGES = ("lower", "compile", "process")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What came of one case.

    Attributes:
        ok: compiled.
        stage: where it failed: "lower", "compile" or "process" (it died or ran out of time); "" where `ok`.
        error: the first line of the message, or "".
        metrics: numbers of the compiled kernel, by name; a backend says what they are.
    """

    ok: bool
    stage: str = ""
    error: str = ""
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """What is compiled, for which chips, and how.

    Attributes:
        name: of the backend and of its golden file.
        targets: chips to compile for.
        cases: names of what is compiled for each.
        note: what the metrics are, kept in the golden file.
        tolerance: metric -> how much it may grow, as a share of the golden value; a metric not named must be equal.
        versions: of what compiles, by package.
        environments: `(target, dump folder) -> variables` that the process must start with; the next is tried where a
            process dies, and the report says so.
        compile_case: `(target, case, dump folder) -> Report`; in that process.
        module: whose command line compiles a case in its process.
        folder: of its golden file.
    """

    name: str
    targets: tuple[str, ...]
    cases: tuple[str, ...]
    note: str
    tolerance: Mapping[str, float]
    versions: Callable[[], dict[str, str]]
    environments: Callable[[str, str], tuple[dict[str, str], ...]]
    compile_case: Callable[[str, str, str], Report]
    module: str = "lowbit_kernels.aot"
    folder: pathlib.Path = pathlib.Path(__file__).parent / "golden"


def failed(stage: str, error: BaseException | str) -> Report:
    """The report of a failure; `stage` is one of `STAGES`."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return Report(ok=False, stage=stage, error=text.strip().split("\n")[0][:300])


def compiled(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """What a function compiles to for arguments, or the report of the stage that failed."""
    try:
        lowered = jax.jit(function).lower(*arguments)
    except Exception as error:  # noqa: BLE001 (whatever the compiler raises is the finding)
        return failed("lower", error)
    try:
        return lowered.compile()
    except Exception as error:  # noqa: BLE001 (the same)
        return failed("compile", error)


def isolated(backend: Backend, target: str, case: str, seconds: float) -> Report:
    """The report of one case compiled in a process of its own: some fail by abort, and flags are read once a process."""
    with tempfile.TemporaryDirectory() as folder:
        first, *others = backend.environments(target, folder)
        report = _attempt(backend, target, case, folder, first, seconds)
        for variables in others:
            if report.stage != "process":
                break
            report = _attempt(backend, target, case, folder, variables, seconds)
            report = dataclasses.replace(report, metrics={**report.metrics, "retried": True})
    return report


def _attempt(
    backend: Backend, target: str, case: str, folder: str, variables: dict[str, str], seconds: float
) -> Report:
    command = [sys.executable, "-m", backend.module, backend.name, "--one", target, case, folder]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return failed("process", f"no result in {seconds:.0f} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        reason = next((line for line in done.stderr.splitlines() if "Check failed" in line or "Error" in line), "")
        return failed("process", f"exit status {done.returncode}; {reason}")
    return Report(**json.loads(lines[-1]))


def compile_all(
    backend: Backend,
    targets: tuple[str, ...],
    cases: tuple[str, ...],
    *,
    jobs: int,
    seconds: float,
    show: Callable[[str, str, Report], None],
) -> dict[str, dict[str, Report]]:
    """Reports by target and case; `show` is called with each as it comes, in order."""
    keys = [(target, case) for target in targets for case in cases]
    result: dict[str, dict[str, Report]] = {target: {} for target in targets}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        reports = pool.map(lambda key: isolated(backend, key[0], key[1], seconds), keys)
        for (target, case), report in zip(keys, reports, strict=True):
            result[target][case] = report
            show(target, case, report)
    return result


def differences(
    got: Mapping[str, Mapping[str, Report]], golden: Mapping[str, Mapping[str, Report]], tolerance: Mapping[str, float]
) -> list[str]:
    """What is worse than golden, or not known there, a line each. Better than golden is no difference; None is what a compiler does not tell."""
    lines = []
    for target, cases in got.items():
        for case, report in cases.items():
            expected = golden.get(target, {}).get(case)
            where = f"{target}, {case}"
            if expected is None:
                lines.append(f"{where}: not in the golden file")
            elif (report.ok, report.stage) != (expected.ok, expected.stage):
                lines.append(f"{where}: {_outcome(report)}, golden {_outcome(expected)}")
            else:
                lines += [f"{where}: {text}" for text in _worse(report.metrics, expected.metrics, tolerance)]
    return lines


def _worse(got: Mapping[str, Any], golden: Mapping[str, Any], tolerance: Mapping[str, float]) -> list[str]:
    lines = []
    for name in sorted(got.keys() | golden.keys()):
        a, b = got.get(name), golden.get(name)
        if name in tolerance and a is not None and b is not None:
            if a > b * (1 + tolerance[name]):
                lines.append(f"{name} is {a}, golden {b}, at most {tolerance[name]:.0%} more is allowed")
        elif a != b:
            lines.append(f"{name} is {a}, golden {b}")
    return lines


def _outcome(report: Report) -> str:
    return "compiles" if report.ok else f"fails in {report.stage} ({report.error})"


def read_golden(backend: Backend) -> tuple[dict[str, str], dict[str, dict[str, Report]]]:
    """(versions, target -> case -> report) of a backend's golden file."""
    data = json.loads(golden_path(backend).read_text())
    reports = {t: {c: Report(**fields) for c, fields in cases.items()} for t, cases in data["reports"].items()}
    return data["versions"], reports


def write_golden(backend: Backend, reports: Mapping[str, Mapping[str, Report]]) -> None:
    """Writes a backend's golden file: a line for each report."""
    lines = [
        f' "note": {json.dumps(backend.note)},',
        f' "versions": {json.dumps(backend.versions())},',
        ' "reports": {',
    ]
    blocks = []
    for target, cases in reports.items():
        rows = [f"   {json.dumps(case)}: {json.dumps(_set_fields(report))}" for case, report in cases.items()]
        blocks.append(f"  {json.dumps(target)}: {{\n" + ",\n".join(rows) + "\n  }")
    golden_path(backend).write_text("{\n" + "\n".join([*lines, ",\n".join(blocks), " }"]) + "\n}\n")


def _set_fields(report: Report) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(report).items() if value not in ("", {})}


def golden_path(backend: Backend) -> pathlib.Path:
    """Where a backend's golden file is."""
    return backend.folder / f"{backend.name}.json"
