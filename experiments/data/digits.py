"""The digits of scikit-learn: 1,797 images of 8x8 pixels, 10 classes.

The test part of Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI Machine Learning Repository, 1998 (CC BY
4.0): bitmaps of 32x32 from 43 people, counted in blocks of 4x4. Files are read by path: ``pip install --no-deps
scikit-learn`` is enough.
"""

import gzip
import io

import numpy as np

from experiments.data.dataset import DataError, package_file, sha256
from lowbit.run import Dataset, Split

SIZE, CLASSES, TRAINING = 8, 10, 1_400
CONTENT = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
INSTALL = "pip install --no-deps scikit-learn==1.9.1"


def load() -> Dataset:
    """Returns images ``[batch, 8, 8, 1]`` in [0, 1]: 1,400 for training and 397 for testing, in an order drawn once.

    Raises:
        DataError: if the package is not there, or the file is not the one known.
    """
    path = package_file("sklearn", "datasets/data/digits.csv.gz", install=INSTALL)
    content = path.read_bytes()
    if (found := sha256(content)) != CONTENT:
        raise DataError(f"{path} is another file (sha256 {found[:12]}, expected {CONTENT[:12]}): {INSTALL}")
    table = np.loadtxt(io.BytesIO(gzip.decompress(content)), delimiter=",", dtype=np.float32)
    table = table[np.random.default_rng(0).permutation(len(table))]
    images = table[:, :-1].reshape(-1, SIZE, SIZE, 1) / np.float32(16)
    labels = table[:, -1].astype(np.int32)
    train, test = (Split(images[part], labels[part]) for part in (slice(TRAINING), slice(TRAINING, None)))
    return Dataset("digits", "scikit-learn's digits.csv.gz", train, test)
