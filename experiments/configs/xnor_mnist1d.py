"""Binary weights with the mean magnitude as their scale; inputs 8, 4 and 2 bits (LSQ).

Command::

    lowbit run experiments/configs/xnor_mnist1d.py

Rastegari et al., XNOR-Net, ECCV 2016: the binary-weight network; its binary inputs are not built.

Gives in %, mean ± standard deviation of 3 seeds, in 0.5 minutes on 2 CPU cores: float 93.67 ± 1.02, ptq_a8
14.17 ± 6.84, xnor_a8 87.93 ± 0.50, xnor_a4 87.03 ± 1.44, xnor_a2 77.83 ± 4.04.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d, pair
from lowbit.quantizers.xnor import xnor
from lowbit.run import Method

config = on_mnist1d(
    "xnor_mnist1d",
    Method("ptq_a8", inner(pair(xnor("wbinary"), lb.rtn("a8")))),
    Method("xnor_a8", inner(pair(xnor("wbinary"), lb.lsq("a8"))), QAT),
    Method("xnor_a4", inner(pair(xnor("wbinary"), lb.lsq("a4"))), QAT),
    Method("xnor_a2", inner(pair(xnor("wbinary"), lb.lsq("a2"))), QAT),
)
