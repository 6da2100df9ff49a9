"""A config small enough for a test: 400 made-up images, two epochs."""

import numpy as np

import lowbit as lb
from experiments.config import Config, Fit, Method
from experiments.data.dataset import Dataset, Split
from experiments.job import run as run
from experiments.models import small_conv


def stripes() -> Dataset:
    """Returns images whose class is the row of a bright stripe: learnable in a few steps."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, 10, 400).astype(np.int32)
    images = rng.uniform(0, 0.3, (400, 28, 28, 1)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 3 : 2 * label + 6] += 0.7
    return Dataset("stripes", "made up", Split(images[:300], labels[:300]), Split(images[300:], labels[300:]))


config = Config(
    name="tiny",
    data=stripes,
    model=small_conv.build,
    predict=small_conv.predict,
    fit=Fit(epochs=2, batch=50, lr=1e-2),
    methods=(
        Method("w8a8", {"**": "w8,a8"}),
        Method("lsq_w4a4", {"**": lb.lsq("w4,a4")}, Fit(epochs=2, batch=50, lr=2e-3)),
    ),
    seeds=(0,),
    test_batch=50,
    calibration_images=100,
    edge_images=0,
    latency_rounds=2,
)
