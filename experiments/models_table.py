"""The table of public models for the README, written by this and by nothing else.

``python -m experiments.models_table README.md`` renders ``experiments/results/models.json``, which ``make test-models`` writes.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.matrix_table import write_block

RESULT = Path(__file__).parent / "results" / "models.json"
MARKS = "<!-- models: written by python -m experiments.models_table README.md -->", "<!-- end of models -->"
TITLES = {
    "nnx": "Flax's nnx modules",
    "equinox": "Equinox",
    "haiku": "Haiku",
    "huggingface": "Flax models of transformers",
    "keras": "keras.applications",
}
COLUMNS = (
    "package", "models", "bind W8A8", "operations", "quantized", "on kernels", "execute = simulate", "op by op",
    "largest difference", "gradients, least cosine", "full-integer", "of them exact", "bind, s",
)  # fmt: skip
NOTE = (
    "Public architectures, tiny and with random weights, by `make test-models`. bind W8A8: with one rule, `**: w8,a8`, and no "
    "help. execute = simulate: models whose every result is the same to the last bit, each one compiled program; largest "
    "difference: of the others, over the largest result. op by op: models that are the same to the last bit where every "
    "equation is a program of its own (`jax.disable_jit`): what is left above is the order in which the compiler adds the "
    "model's own floats, the means of norms and of softmax, and codes that lie on the edge between two. gradients: of a "
    "simulation, beside the float model's; all are finite where float's are. full-integer: bind with `integer=True`, and of "
    "them, those that execute what they simulate. bind: median seconds of processor."
)
_PATHS = re.compile(
    r"\(it follows [^)]*\)|\([\w.]+:\d+\)|float32\[[\d,]*\]|\b\S*[/_]\d\S*|\d+ operations are refused: "
)


def row(title: str, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the cells of one package."""
    bound = [line for line in lines if not line["bound"]]
    served = [line for line in bound if line["difference"] is not None]
    same = [line for line in served if line["difference"] == 0.0]
    exact = [line for line in served if not (line["op_by_op"] if line["difference"] else line["difference"])]
    off = [line["difference"] for line in served if line["difference"] > 0.0]
    cosines = [line["gradients"] for line in served if line["gradients"] is not None]
    whole = [line for line in bound if line["integer"] == ""]
    alone = [line for line in whole if line["integer_difference"] == 0.0]
    binds = sorted(line["seconds"][0] for line in bound)
    helped = sum(bool(line["help"]) for line in bound)
    return [
        title,
        f"{len(lines)}",
        f"{len(bound) - helped}" + (f", with help {helped}" if helped else ""),
        f"{sum(line['rows'] for line in bound)}",
        f"{sum(line['quantized'] for line in bound)}",
        f"{sum(line['native'] or 0 for line in bound)}",
        f"{len(same)}",
        f"{len(exact)}",
        f"{max(off):.1g}" if off else "0",
        f"{min(cosines):.3f}" if cosines else "-",
        f"{len(whole)}",
        f"{len(alone)}",
        f"{binds[len(binds) // 2]:.2f}" if binds else "-",
    ]


def refusals(models: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns the models whose full-integer plan is refused, by the primitive, or by the start of the sentence."""
    found: dict[str, list[str]] = {}
    for name, line in models.items():
        for what in sorted(set(re.findall(r"cannot place (\w+)", line["integer"] or ""))):
            found.setdefault(f"`{what}`", []).append(name)
        if line["integer"] and "cannot place" not in line["integer"]:
            text = _PATHS.sub("", line["integer"].split(": ", 1)[1]).strip()
            found.setdefault(text[:80].rsplit(" ", 1)[0], []).append(name)
    return dict(sorted(found.items(), key=lambda each: -len(each[1])))


def markdown(found: Mapping[str, Any]) -> str:
    """Returns the table and what its cells mean."""
    models = found["models"]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for kind, title in TITLES.items():
        of = [line for name, line in models.items() if name.split("/")[0] == kind]
        if of:
            lines.append("| " + " | ".join(row(f"{title} {found['packages'][kind]}", of)) + " |")
    lines.append("| " + " | ".join(row("all", list(models.values()))) + " |")
    why = ", ".join(f"{what} ({len(names)})" for what, names in refusals(models).items())
    said = f"Refused with `integer=True`, by what has no integer form, with its source line: {why}." if why else ""
    return "\n".join([*lines, "", NOTE, *(["", said] if said else [])]) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Writes the table into the documents named."""
    write_block(arguments, markdown(json.loads(RESULT.read_text())), MARKS)


if __name__ == "__main__":
    main(sys.argv[1:])
