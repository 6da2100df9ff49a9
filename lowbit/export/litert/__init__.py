"""LiteRT (TensorFlow Lite) and what reads its files: conversion, audit, runtimes.

``prepare`` writes the universal form as the converter takes it, ``worker`` runs every tool in its own process, ``audit``
reads the result. Needs ``pip install 'lowbit[edge]'``.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

_SECONDS = 600


def is_installed(module: str) -> bool:
    """Returns whether a tool can be imported, without importing it."""
    return importlib.util.find_spec(module) is not None


def work(command: str, *arguments: str, what: str) -> str:
    """Runs one command of `lowbit.export.litert.worker` and returns what it printed, standard error first.

    Args:
        command: its name.
        arguments: paths and words.
        what: of the error: "the converter", "TFLite-Micro".

    Raises:
        ValueError: if it fails, with its first line of error, or the signal that ended it.
    """
    script = Path(__file__).with_name("worker.py")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    try:
        done = subprocess.run(
            [sys.executable, str(script), command, *arguments],
            capture_output=True, text=True, errors="replace", timeout=_SECONDS, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ValueError(f"{what} did not end within {_SECONDS} seconds") from None
    if done.returncode == 0:
        return done.stderr + done.stdout
    raise ValueError(f"{what} failed{_signal(done.returncode)}: {_first_error(done.stderr)}")


def _signal(code: int) -> str:
    if code >= 0:
        return ""
    try:
        return f" ({signal.Signals(-code).name})"
    except ValueError:
        return f" (signal {-code})"


_NOISE = ("INFO:", "WARNING:", "I0000", "W0000", "Traceback", "  ", "The above", "During handling")


def _first_error(text: str) -> str:
    """The first line that says what is wrong: MLIR's, else a runtime's, else Python's last."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(_NOISE)]
    for word in ("error:", "ERROR", "Error"):
        for line in lines:
            if word in line:
                return line.split("error: ", 1)[-1][:500]
    return lines[-1][:500] if lines else "it said nothing"
