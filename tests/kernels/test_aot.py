"""The compile-only reports: the golden file is whole, and a report worse than golden is found. `make test-aot` compiles."""

import dataclasses

import pytest

from lowbit_kernels.aot import report
from lowbit_kernels.aot.__main__ import BACKENDS, main
from lowbit_kernels.aot.report import Report, differences


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_golden_reports_cover_every_case(name):
    backend = BACKENDS[name]
    versions, golden = report.read_golden(backend)
    assert versions
    assert {target: set(cases) for target, cases in golden.items()} == {
        target: set(backend.cases) for target in backend.targets
    }
    assert not differences(golden, golden, backend.tolerance)


def test_every_tpu_case_compiles_to_one_kernel():
    _, golden = report.read_golden(BACKENDS["tpu"])
    for target, cases in golden.items():
        for case, one in cases.items():
            assert one.ok, (target, case)
            assert one.metrics["kernel"] is True, (target, case)
            assert one.metrics["vmem"] > 0, (target, case)


def test_a_report_worse_than_golden_is_found():
    good = Report(ok=True, metrics={"kernel": True, "cycles": 1000})
    golden = {"chip": {"case": good}}

    def found(one: Report) -> list[str]:
        return differences({"chip": {"case": one}}, golden, {"cycles": 0.05})

    def measured(**metrics) -> Report:
        return dataclasses.replace(good, metrics={**good.metrics, **metrics})

    assert not found(measured(cycles=1050))
    assert not found(measured(cycles=500))
    assert "cycles is 1051, golden 1000" in found(measured(cycles=1051))[0]
    assert "kernel is False" in found(measured(kernel=False))[0]
    assert not differences(
        {"chip": {"case": measured(cycles=None)}}, {"chip": {"case": measured(cycles=None)}}, {"cycles": 0.05}
    )
    assert "cycles is None" in found(dataclasses.replace(good, metrics={"kernel": True}))[0]
    assert "fails in compile (E1001), golden compiles" in found(report.failed("compile", "E1001\nmore"))[0]
    assert differences({"chip": {"new": good}}, golden, {}) == ["chip, new: not in the golden file"]


def test_the_command_line_names_what_there_is(capsys):
    with pytest.raises(SystemExit):
        main(["tpu", "--target", "v1"])
    assert "the targets are ('v5e'" in capsys.readouterr().err
