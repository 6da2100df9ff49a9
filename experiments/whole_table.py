"""The table of whole networks for the README, written by this and by nothing else.

``python -m experiments.whole_table README.md`` renders ``experiments/results/bench_whole*.json``: a file for every machine, each
``times.json`` of a run of ``experiments/configs/bench_whole.py`` there.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.matrix_table import write_block

RESULTS = Path(__file__).parent / "results"
MARKS = "<!-- whole: written by python -m experiments.whole_table README.md -->", "<!-- end of whole -->"
TITLES = {"demo": "the demo's network", "MiniLM": "MiniLM, 128 tokens"}
COLUMNS = {
    "w8a8": "lowbit",
    "integer_w8a8": "lowbit, full-integer",
    "float": "XLA float32",
    "onnxruntime w8a8": "ONNX Runtime",
    "onnxruntime integer_w8a8": "full-integer",
    "openvino w8a8": "OpenVINO",
    "openvino integer_w8a8": "full-integer",
}


def runs() -> list[dict[str, Any]]:
    """Returns the runs, one a machine."""
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("bench_whole*.json"))]


def milliseconds(lines: Sequence[Mapping[str, Any]], column: str) -> str:
    """Returns the medians of a column, by growing batch; a dash where it was not measured."""
    times = [line["times"][column]["median_ms"] for line in lines if column in line["times"]]
    return " / ".join(f"{ms:.2g}" if ms < 99.5 else f"{ms:.0f}" for ms in times) or "-"


def of_machine(run: Mapping[str, Any]) -> str:
    """Returns the sentence and the table of one run."""
    device, lines = run["device"], run["rows"]
    takes = [method for line in lines for method in line["peer_takes"].values()]
    behind = {peer: sum(each[peer] < 1.0 for each in takes) for peer in ("onnxruntime", "openvino")}
    fast = [each["float"] for each in takes]
    sentence = (
        f"{device['cores']} cores of an {device['cpu']}, {run['isa']}, at commit {run['commit'][:12]}: {min(fast):.2g} to "
        f"{max(fast):.2g} times as fast as float32 in XLA; behind the faster file in ONNX Runtime in {behind['onnxruntime']} of "
        f"{len(takes)}, in OpenVINO in {behind['openvino']}."
    )
    rows = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for network in dict.fromkeys(line["network"] for line in lines):
        own = [line for line in lines if line["network"] == network]
        cells = [TITLES.get(network, network), *(milliseconds(own, column) for column in COLUMNS)]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join([sentence, "", *rows])


def markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """Returns the block between the marks, a table for every run."""
    return "\n\n".join(map(of_machine, found)) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Writes the tables into the documents named."""
    write_block(arguments, markdown(runs()), MARKS)


if __name__ == "__main__":
    main(sys.argv[1:])
