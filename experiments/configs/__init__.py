"""One file per experiment: ``lowbit run experiments/configs/NAME.py``."""
