"""Trained codebooks of 4 levels beside even levels of as many bits.

Command::

    lowbit run experiments/configs/deep_compression_mnist1d.py

Han, Mao, Dally, Deep Compression, ICLR 2016. Weights between the first and the last layer; inputs stay in float. ``ptq``: the
levels of k-means, not trained.

Needs 4 minutes on 2 CPU cores; what it gives is in ``papers/deep_compression.md``.
"""

import lowbit as lb
from experiments.base import QAT, inner, on_mnist1d
from experiments.config import Fit, Method
from experiments.job import run as run
from lowbit.quantizers.deep_compression import deep_compression

LEVELS = Fit(epochs=QAT.epochs, batch=QAT.batch, lr=QAT.lr, step_lr=0.1)
"""The same with a rate for levels, which are numbers up to 127."""

config = on_mnist1d(
    "deep_compression_mnist1d",
    Method("rtn_w2", inner(lb.rtn("w2")), QAT),
    Method("ptq_w2", inner(deep_compression("w2"))),
    Method("codebook_w2", inner(deep_compression("w2")), LEVELS),
)
