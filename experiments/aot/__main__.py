"""The command line of `experiments.aot`: that of `lowbit_kernels.aot`, on networks."""

import sys

from experiments.aot.programs import BACKENDS
from lowbit_kernels.aot.__main__ import main

if __name__ == "__main__":
    sys.exit(main(None, BACKENDS, "experiments.aot"))
