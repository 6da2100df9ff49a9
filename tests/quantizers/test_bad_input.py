"""Impossible combinations are refused when built: the argument, what it got, what it may be."""

import re
from pathlib import Path

import pytest

from lowbit.core.clipping import Entropy, Octav, Percentile
from lowbit.core.ranges import MSE, MovingAverage, check_range
from lowbit.quantizers.ewgs import ewgs
from lowbit.quantizers.lsq import lsq
from lowbit.quantizers.lsq_plus import lsq_plus
from lowbit.quantizers.noise import noise
from lowbit.quantizers.pact import pact
from lowbit.quantizers.rtn import rtn
from lowbit.quantizers.seq import seq
from lowbit.quantizers.statsq import statsq
from lowbit.quantizers.stochastic import stochastic
from lowbit.quantizers.tqt import tqt
from lowbit.quantizers.twn import twn
from tests.contract.cases import WEIGHT_OPTIONS, factories


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: rtn("w9"), "1 to 8 or 16 bits, got 9"),
        (lambda: rtn("w0"), "1 to 8 or 16 bits, got 0"),
        (lambda: rtn("w4/g0"), "at least 2, got 0"),
        (lambda: rtn("w4/g1"), "at least 2, got 1"),
        (lambda: rtn("wnf4/affine"), "only integer formats can be affine, got nf4"),
        (lambda: rtn("wfp8_e4m3/affine"), "only integer formats can be affine, got fp8_e4m3"),
        (lambda: rtn("wint1n"), "one level left"),
        (lambda: rtn("wnf4/narrow"), "integer formats, got nf4"),
        (lambda: rtn("wmxfp4/g16"), "fixes its block"),
        (lambda: rtn("w4/dynamic"), "a weight's scale is stored"),
        (lambda: rtn("a8/channel"), "got /channel, whose scales depend on the batch; use /tensor, or /dynamic"),
        (lambda: lsq("a4/g32"), "got /g32, whose scales depend on the batch"),
        (lambda: rtn("w4", rounding="up"), "nearest_even, half_away, got 'up'"),
        (lambda: rtn("wnf4", rounding="half_away"), "nf4 has its own"),
        (lambda: rtn("wnf4", range=Octav()), "integer format, got nf4"),
        (lambda: rtn("wfp4", range=Entropy()), "at most 8 bits, got fp4_e2m1"),
        (lambda: Percentile(-1.0), r"\(50, 100\], got -1"),
        (lambda: Percentile(101.0), r"\(50, 100\], got 101"),
        (lambda: MSE(steps=1), "steps >= 2"),
        (lambda: Octav(0), "at least 1, got 0"),
        (lambda: Entropy(8), "bins >= 256"),
        (lambda: MovingAverage(1.5), r"\[0, 1\), got 1.5"),
        (lambda: lsq("wnf4"), "integer format, got nf4"),
        (lambda: lsq("a8/dynamic"), "cannot be /dynamic"),
        (lambda: lsq("w4", start="best"), "'auto', 'mse' or 'paper', got 'best'"),
        (lambda: lsq("wint1"), "positive level, got int1"),
        (lambda: lsq_plus("w4/dq"), "one float, got int4"),
        (lambda: ewgs("w4", delta=float("nan")), "got nan"),
        (lambda: tqt("w4/affine"), "write /sym"),
        (lambda: pact("w4"), "'w4'"),
        (lambda: seq("w3"), "got mid3"),
        (lambda: statsq("wnf4"), "got nf4"),
        (lambda: twn("wternary", factor=-1.0), "got -1"),
        (lambda: noise("w4", rate=1.5), "got 1.5"),
        (lambda: stochastic("wnf4"), "nf4"),
    ],
)
def test_impossible_combinations(build, says):
    with pytest.raises(ValueError, match=says):
        build()


def test_a_range_is_a_rule():
    with pytest.raises(TypeError, match=r"range must be a RangeRule such as .* got 'mse'"):
        check_range("mse", rtn("w4").weight.spec)


@pytest.mark.parametrize("name", sorted(factories()))
def test_every_refusal_says_what_it_got(name):
    """Of all words and options: a factory builds, or names the format, the text or the spec that it does not take."""
    words = ("1", "4", "uint4", "16", "nf4", "fp8_e4m3", "ternary", "binary", "mid2", "mxfp4")
    refusals = {}
    for text in (f"w{word}{option}" for word in words for option in WEIGHT_OPTIONS):
        try:
            factories()[name](text)
        except ValueError as error:
            refusals[text] = str(error)
    says = re.compile(r"got|fixes its block|one level left")
    assert not {text: message for text, message in refusals.items() if not says.search(message)}


def test_every_method_has_its_file():
    """A new quantizer brings its equations, in a file of its own name."""
    assert set(factories()) == {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")} - {
        "bad_input"
    }
