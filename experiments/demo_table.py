"""The demo's table in the README: of a named commit and processor, and written by this alone.

``cp runs/demo/summary.json runs/demo/accuracy.svg`` to ``experiments/results/demo.json`` and ``demo.svg``, then
``python -m experiments.demo_table README.md``.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.matrix_table import block
from lowbit.core import atomic

RESULT = Path(__file__).parent / "results" / "demo.json"
MARKS = "<!-- demo: written by python -m experiments.demo_table README.md -->", "<!-- end of demo -->"


def markdown(found: Mapping[str, Any]) -> str:
    """Returns what was run, where, and the table that it ended with, without the ruler under its head."""
    head, _, *rows = found["table"]
    device, versions, changes = found["device"], found["versions"], " with changes" if found["dirty"] else ""
    lead = (
        f"`make demo` took {found['minutes']:g} minutes after the downloads on {device['cores']} cores of an {device['cpu']}, at "
        f"commit {found['commit'][:12]}{changes}, with jax {versions['jax']} and IREE {versions['iree-base-compiler']}, and "
        f"ended with (accuracy on the 10,000 test images of Fashion-MNIST, {len(found['seeds'])} seeds; every seed is in "
        f"[demo.json](experiments/results/demo.json)):"
    )
    return "\n".join([lead, "", "```", head, *rows, "```"]) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Writes the table into the documents named."""
    found = json.loads(RESULT.read_text())
    for name in arguments:
        text = Path(name).read_text()
        start, end = block(text, MARKS)
        atomic.write(name, text[:start] + markdown(found) + text[end:])


if __name__ == "__main__":
    main(sys.argv[1:])
