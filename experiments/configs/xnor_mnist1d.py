"""Binary weights with the mean magnitude as their scale; inputs 8, 4 and 2 bits (LSQ).

Command::

    lowbit run experiments/configs/xnor_mnist1d.py

Rastegari et al., XNOR-Net, ECCV 2016: the binary-weight network; its binary inputs are not built.

Gives in %, mean ± standard deviation of 3 seeds, in 1.8 minutes on 2 CPU cores: float 93.37 ± 0.12, ptq_a8
17.10 ± 6.90, xnor_a8 87.43 ± 0.76, xnor_a4 86.67 ± 1.01, xnor_a2 80.23 ± 1.65.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d, pair
from experiments.config import Method
from experiments.job import run as run
from lowbit.quantizers.xnor import xnor

config = on_mnist1d(
    "xnor_mnist1d",
    Method("ptq_a8", inner(pair(xnor("wbinary"), lb.rtn("a8")))),
    Method("xnor_a8", inner(pair(xnor("wbinary"), lb.lsq("a8"))), QAT),
    Method("xnor_a4", inner(pair(xnor("wbinary"), lb.lsq("a4"))), QAT),
    Method("xnor_a2", inner(pair(xnor("wbinary"), lb.lsq("a2"))), QAT),
)
