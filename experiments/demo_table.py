"""The demo's table in the README: of a named commit and processor, and written by this alone.

``cp runs/demo/summary.json runs/demo/accuracy.svg`` to ``experiments/results/demo.json`` and ``demo.svg``, then
``python -m experiments.demo_table README.md``.
"""

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.matrix_table import write_block
from lowbit.report import tables

RESULT = Path(__file__).parent / "results" / "demo.json"
MARKS = "<!-- demo: written by python -m experiments.demo_table README.md -->", "<!-- end of demo -->"


def markdown(found: Mapping[str, Any]) -> str:
    """Returns what was run, where, and the table that it ended with, but for the times of calls."""
    columns, *rows = found["table"]
    head, _, *lines = tables.text(tables.Table("", columns, rows)).splitlines()
    device, versions, changes = found["device"], found["versions"], " with changes" if found["dirty"] else ""
    lead = (
        f"`make demo` takes about two minutes after the downloads on 2 idle CPU cores. At commit {found['commit'][:12]}{changes}, "
        f"on {device['cores']} cores of an {device['cpu']}, with jax {versions['jax']} and IREE "
        f"{versions['iree-base-compiler']}, it ended with (accuracy on the 10,000 test images of Fashion-MNIST, "
        f"{len(found['seeds'])} seeds; every seed is in [demo.json](experiments/results/demo.json)):"
    )
    return "\n".join([*textwrap.wrap(lead, 120, break_long_words=False), "", "```", head, *lines, "```"]) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Writes the table into the documents named."""
    write_block(arguments, markdown(json.loads(RESULT.read_text())), MARKS)


if __name__ == "__main__":
    main(sys.argv[1:])
