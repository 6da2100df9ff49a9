"""The table of what targets hold: every rule refuses what it must, and its nearest spec is legal."""

import dataclasses

import pytest

import lowbit as lb
from lowbit.export.forms import FORMS
from lowbit.targets.refusals import check, violations
from lowbit.targets.table import TARGETS, lookup

from . import cases


def dense(rule):
    params = {"w": cases.normal(0, 64, 8)}
    return lb.bind(lambda p, x: x @ p["w"], {"**": rule}, params, cases.normal(1, 2, 64))


def conv(rule):
    params = {"k": cases.normal(4, 3, 3, 4, 32), "d": cases.normal(5, 512, 10)}
    return lb.bind(cases.convolution, {"k": rule, "d": "w8,a8"}, params, cases.normal(6, 2, 8, 8, 4))


@pytest.mark.parametrize(
    ("plan", "target", "role", "nearest"),
    [
        (dense("w4,a8"), "tflm", "weight", "int4/tensor/sym"),
        (dense("w2,a8"), "tflm", "weight", "int3/tensor/sym"),
        (dense("w4,a8"), "vela", "weight", "int5/channel/sym"),
        (conv("w2,a8"), "litert", "weight", "int3/channel/sym"),
        (dense("w4/g32,a8"), "litert", "weight", "int4/channel/sym"),
        (dense("w8/affine,a8"), "litert", "weight", "int8/channel/sym"),
        (dense("w8,a8/dynamic"), "litert", "input", "int8/tensor/affine"),
        (dense("w8,aint16"), "litert", "input", "int8/tensor/affine"),
        (dense("w8"), "tflm", "input", "int8"),
        (dense("w4,a8"), "iree-vmvx", "weight", "int5/channel/sym"),
        (conv("w4/g2,a8"), "c", "weight", "int4/channel/sym"),
        (dense("w8,auint8"), "cortex-m4", "input", "int8/tensor/affine"),
    ],
)
def test_refusals_name_the_rule_and_the_nearest_spec(plan, target, role, nearest):
    found = [v for v in violations(plan, TARGETS[target]) if v.role == role]
    assert found
    assert found[0].nearest.startswith(nearest.rsplit("/", 1)[0])
    with pytest.raises(ValueError, match=f"{target} cannot take the {role} of"):
        check(plan, [TARGETS[target]])


@pytest.mark.parametrize(
    ("plan", "target"),
    [
        (dense("w4,a8"), "litert"),
        (dense("w2,a8"), "litert"),
        (conv("w4,a8"), "litert"),
        (conv("w4,a8"), "tflm"),
        (dense("w4/tensor,a8"), "tflm"),
        (dense("w8,a8"), "vela"),
        (dense("w4/g32,a8/dynamic"), "iree"),
        (dense("w4"), "iree"),
        (dense("w8,a8"), "iree-vmvx"),
    ],
)
def test_what_was_measured_to_work_is_accepted(plan, target):
    assert violations(plan, TARGETS[target]) == ()


def test_the_table_is_data():
    for name, target in TARGETS.items():
        assert target.name == name
        assert dataclasses.is_dataclass(target)
        assert target.install.startswith(("pip install ", "apt install "))
        assert target.form in FORMS
    plan = dense("w4,a8")
    check(plan, lookup(["iree", "xla"]))
    with pytest.raises(ValueError, match="litert takes full-integer plans only: bind with integer=True"):
        check(plan, lookup(["litert"]))
    with pytest.raises(TypeError, match="must be a list of names"):
        lookup("iree")
