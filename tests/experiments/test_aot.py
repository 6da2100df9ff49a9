"""Networks compiled for accelerators: the golden reports are whole, what they must not hold is found, the page is current."""

from pathlib import Path

import pytest

import lowbit as lb
from experiments.aot import roofline
from experiments.aot.networks import CASES
from experiments.aot.programs import BACKENDS, unpacked, widened
from lowbit_kernels.aot import report

PAGE = Path(__file__).resolve().parents[2] / "papers/accelerators.md"


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_every_quantized_product_of_every_network_is_a_kernel(name):
    backend = BACKENDS[name]
    versions, golden = report.read_golden(backend)
    assert versions
    assert {target: set(cases) for target, cases in golden.items()} == {t: set(CASES) for t in backend.targets}
    for target, cases in golden.items():
        for case, one in cases.items():
            assert one.ok, (target, case, one.error)
            assert one.metrics["kernels"] == one.metrics["products"], (target, case)
            assert one.metrics["products"] == 2, (target, case)
            assert one.metrics["temp"] < one.metrics["packed"], (target, case)


def test_an_unpacked_weight_and_a_wide_product_are_found_in_a_program():
    network, rules = CASES["dense w4/g128 bfloat16"]
    fn, params, args = network()
    weights = [row.weight for row in lb.bind(fn, rules, params, *args).quantized]
    packed = "%w = u8[512,4096]{1,0} parameter(0)"
    assert not unpacked(packed, weights)
    assert unpacked(packed + "\n%f = bf16[1024,4096]{1,0} convert(%w)", weights) == ["bf16[1024,4096]"]
    assert unpacked("%f = s8[1,4096,1024]{2,1,0} fusion(%w)", weights) == ["s8[1,4096,1024]"]
    bytes_ = "%a = s8[8,64]{1,0} parameter(0)\n%b = s8[64,8]{1,0} parameter(1)\n%c = s32[8,8]{1,0} dot(%a, %b), x={}"
    assert not widened(bytes_)
    assert widened(bytes_.replace("%b = s8", "%b = s32")) == ["s8 x s32"]


def test_least_times_are_those_of_the_data_sheets():
    chip = roofline.CHIPS["sm_90a"]
    one = roofline.least_seconds(chip, 1, 4096, 4096, "W4A16 g128")
    moved = 4096 * 4096 // 2 + 4 * 32 * 4096 + 2 * 2 * 4096  # codes, float32 scales, activations and result
    assert one == pytest.approx(moved / 3.35e12)
    many = roofline.least_seconds(chip, 4096, 4096, 4096, "W8A8")
    assert many == pytest.approx(2 * 4096**3 / 1979e12)


def test_the_tables_of_the_page_are_current():
    assert roofline.text() in PAGE.read_text()
