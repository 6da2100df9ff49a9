"""Gradient rules and step sizes compared: seven ways to train at W4A4, W3A3, W2A2, ternary and binary, on MNIST-1D.

Command::

    lowbit run experiments/configs/study_qat.py

Needs, on 2 CPU cores: about 8 minutes. Five seeds; each has one float checkpoint that every method starts from. First
and last layer are 8 bits, rounded to nearest; weights have a scale per output channel, inputs one per tensor; ternary
and binary weights go with 8-bit inputs. All methods train for 20 epochs with the same learning rates, tuned for none,
and without decay of what quantizers learn, which costs PACT dearly at 2 bits: see ``pact_mnist1d.py``.

A method that does not define a setting has no row there: DoReFa and StatsQ have ``2**k`` levels, so no ternary; LSQ,
LSQ+ and EWGS have integer grids, which one bit is not; SEQ is for ternary and 2 bits. PACT quantizes inputs only and
has the paper's weights, DoReFa's. StatsQ, SEQ, TWN and XNOR quantize weights only and have LSQ inputs. BitNet is as in
its paper: one scale per tensor, inputs 8 bits per row at run time. The numbers are in ``papers/study_qat.md``.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d, pair
from lowbit.quantizers.bitnet import bitnet
from lowbit.quantizers.dorefa import dorefa
from lowbit.quantizers.ewgs import ewgs
from lowbit.quantizers.lsq_plus import lsq_plus
from lowbit.quantizers.pact import pact
from lowbit.quantizers.seq import seq
from lowbit.quantizers.statsq import statsq
from lowbit.quantizers.twn import twn
from lowbit.quantizers.xnor import xnor
from lowbit.run import Method, study


def methods(setting: str, weight: str, inputs: str) -> tuple[Method, ...]:
    """Returns the rows of one setting; ``weight`` and ``inputs`` are rule texts such as ``w4`` and ``a4``."""
    both = f"{weight},{inputs}"
    rounded, learned = lb.rtn(both), lb.lsq(inputs)
    found = {"rtn": rounded}
    if setting != "ternary":
        found |= {"dorefa": dorefa(both), "pact": pair(dorefa(weight), pact(inputs))}
    if setting != "binary":
        found |= {"lsq": lb.lsq(both), "lsq_plus": lsq_plus(both), "ewgs": ewgs(both)}
    if setting != "ternary":
        found["statsq"] = pair(statsq(weight), learned)
    if setting in ("ternary", "w2a2"):
        found["seq"] = pair(seq(weight), learned)
    if setting == "ternary":
        found |= {"twn": pair(twn(weight), learned), "bitnet": pair(bitnet("wternary/tensor"), lb.rtn("a8/dynamic"))}
    if setting == "binary":
        found["xnor"] = pair(xnor(weight), learned)
    trained = (Method(f"{name}_{setting}", inner(rule), QAT) for name, rule in found.items())
    return Method(f"ptq_{setting}", inner(rounded)), *trained


SETTINGS = {
    "w4a4": ("w4", "a4"),
    "w3a3": ("w3", "a3"),
    "w2a2": ("w2", "a2"),
    "ternary": ("wternary", "a8"),
    "binary": ("wbinary", "a8"),
}
config = on_mnist1d(
    "study_qat",
    *(m for name, parts in SETTINGS.items() for m in methods(name, *parts)),
    seeds=(0, 1, 2, 3, 4),
    evals=(),
    report=study.compared,
)
