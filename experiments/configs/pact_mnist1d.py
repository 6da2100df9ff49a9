"""A learned clip of 2-bit inputs by its decay, beside DoReFa's fixed one and LSQ's step; weights DoReFa's, 4 bits.

Command::

    lowbit run experiments/configs/pact_mnist1d.py

Choi et al., PACT, 2018. The clip starts at the largest input measured, 7 to 11, and has a gradient only where an input
reaches it: without decay it stays there.

Gives in %, mean ± standard deviation of 3 seeds, in 0.6 minutes on 2 CPU cores: float 93.67 ± 1.02, pact 75.37 ± 3.13,
decay_1e-3 81.07 ± 1.50, decay_1e-2 85.93 ± 1.20, dorefa 88.73 ± 0.91, lsq 88.90 ± 1.55.
"""

import dataclasses

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d, pair
from lowbit.quantizers.dorefa import dorefa
from lowbit.quantizers.pact import pact
from lowbit.run import Method

PLAIN = dataclasses.replace(QAT, step_lr=1e-2)

config = on_mnist1d(
    "pact_mnist1d",
    Method("pact", inner(pair(dorefa("w4"), pact("a2"))), PLAIN),
    Method("decay_1e-3", inner(pair(dorefa("w4"), pact("a2"))), dataclasses.replace(PLAIN, step_decay=1e-3)),
    Method("decay_1e-2", inner(pair(dorefa("w4"), pact("a2"))), dataclasses.replace(PLAIN, step_decay=1e-2)),
    Method("dorefa", inner(dorefa("w4,a2")), QAT),
    Method("lsq", inner(pair(dorefa("w4"), lb.lsq("a2"))), QAT),
)
