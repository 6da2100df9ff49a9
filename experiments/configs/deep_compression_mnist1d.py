"""Trained codebooks of 4 levels beside even levels of as many bits.

Command::

    lowbit run experiments/configs/deep_compression_mnist1d.py

Han, Mao, Dally, Deep Compression, ICLR 2016. Weights between the first and the last layer; inputs stay in float. ``ptq``: the
levels of k-means, not trained.

Gives in %, mean ± standard deviation of 3 seeds, in 3.7 minutes on 2 loaded CPU cores: float 93.70 ± 0.80, rtn_w2
90.50 ± 1.13, ptq_w2 55.50 ± 11.13, codebook_w2 92.77 ± 0.64.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from lowbit.quantizers.deep_compression import deep_compression
from lowbit.run import Fit, Method

LEVELS = Fit(epochs=QAT.epochs, batch=QAT.batch, lr=QAT.lr, step_lr=0.1)
"""The same with a rate for levels, which are numbers up to 127."""

config = on_mnist1d(
    "deep_compression_mnist1d",
    Method("rtn_w2", inner(lb.rtn("w2")), QAT),
    Method("ptq_w2", inner(deep_compression("w2"))),
    Method("codebook_w2", inner(deep_compression("w2")), LEVELS),
)
