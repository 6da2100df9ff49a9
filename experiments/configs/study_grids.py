"""Which rule of scale is best for which 4-bit format: the error of weights at equal total bits, scales included.

Command::

    lowbit run experiments/configs/study_grids.py

Needs 4 minutes on 2 CPU cores. It rounds normal numbers, and the weights of those pretrained networks whose packages are
installed (BlazeFace, MobileNetV2, MiniLM: the readers in ``experiments/models`` name them), in every format with every
rule, and prints and writes, as ``grids.json``, the squared error over the squared weights. No data is seen. Which default
follows from it stands in ``papers/grids.md``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models import blazeface, minilm, mobilenet_v2
from lowbit.core.ranges import Full, PowerOfTwo, RangeRule
from lowbit.core.searching import FourOverSix, Searched
from lowbit.formats.lookup import spec_from_text
from lowbit.packed.arrays import quantize_array
from lowbit.quantizers.rtn import RTN
from lowbit.report.tables import Table, text
from lowbit.run.environment import environment
from lowbit.run.folder import write_json

RULES: dict[str, RangeRule] = {
    "absmax": Full(),
    "even": PowerOfTwo("even"),
    "four over six": FourOverSix(),
    "searched": Searched(),
    "searched, outer too": Searched(outer=(1.0, 0.95, 0.9, 0.85, 0.8)),
}
"""Rules by the name of the table; a rule that does not fit a format is left out there."""


@dataclasses.dataclass(frozen=True)
class Grids:
    """What is measured.

    Attributes:
        name: of the folder of results.
        formats: rule texts of weights, without their letter.
        rules: names of `RULES`.
        rows: of normal numbers, of 2048 each.
        most: weights taken of a network, about, over the layers of the commonest number of inputs.
        networks: pretrained weights by name; one that is not installed is left out, and said so.
    """

    name: str = "study_grids"
    formats: tuple[str, ...] = (
        "int4/g32/float16", "int4/g32/float16/signed", "int4/g32/int4", "int4/g32/int5", "int4/g16/int5", "int4/g32/int6",
        "int4/g32/e4m3/signed", "int4/g16/e4m3/signed", "int4n/g16/e4m3", "int4/g64/float16/signed",
        "int4/g128/float16/signed", "nf4/g32/float16", "nf4/g32/float16/signed", "nf4/g64/float16", "nf4/g64/float16/signed",
        "nf4/g32/int5", "nf4/g16/e4m3/signed", "nvfp4", "mxfp4", "mxint4",
    )  # fmt: skip
    rules: tuple[str, ...] = tuple(RULES)
    rows: int = 64
    most: int = 150_000
    networks: tuple[str, ...] = ("blazeface", "mobilenet_v2", "minilm")


config = Grids()

LOADERS: dict[str, Callable[[], Any]] = {
    "blazeface": blazeface.load,
    "mobilenet_v2": mobilenet_v2.load,
    "minilm": minilm.load,
}


def run(config: Grids, out: Path, *, fresh: bool = False) -> None:
    """Measures everything, prints the table, writes ``grids.json`` into ``out``."""
    sources = {"normal": jax.random.normal(jax.random.key(0), (config.rows, 2048))}
    missing = {}
    for name in config.networks:
        try:
            sources[name] = matrix(LOADERS[name]().params, config.most)
        except (ImportError, FileNotFoundError) as error:
            missing[name] = str(error)
            print(f"{name} is left out: {error}", flush=True)
    entries = []
    for form in config.formats:
        for name in config.rules:
            entry = measured(form, name, sources)
            if entry is not None:
                entries.append(entry)
                print(f"{form:<26} {name:<20} {entry['error']}", flush=True)
    found = {"config": dataclasses.asdict(config), **environment(), "missing": missing, "entries": entries}
    write_json(out / "grids.json", found)
    print(text(table(found)))
    print(f"\n{out / 'grids.json'}")


def matrix(params: Any, most: int) -> jax.Array:
    """Returns weights as one matrix ``[out, in]``: the layers of the number of inputs that most weights have.

    Args:
        params: of a network.
        most: weights taken, whole outputs.
    """
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(params) if np.ndim(leaf) >= 2]
    by_inputs: dict[int, list[np.ndarray]] = {}
    for leaf in leaves:
        rows = leaf.reshape(-1, leaf.shape[-1]).T
        if rows.shape[1] >= 64:
            by_inputs.setdefault(rows.shape[1], []).append(rows)
    found = max(by_inputs.values(), key=lambda each: sum(rows.size for rows in each))
    joined = np.concatenate(found)
    return jnp.asarray(joined[:: max(joined.size // most, 1)])


def measured(form: str, rule: str, sources: Mapping[str, jax.Array]) -> dict[str, Any] | None:
    """Returns bits and errors of one format under one rule, or None where they do not go together."""
    try:
        quantizer = RTN(spec_from_text(form, is_weight=True), RULES[rule])
    except ValueError:
        return None
    if "outer" in rule and quantizer.spec.scale.spec is None:  # the same as without
        return None
    errors, bits = {}, 0.0
    for name, w in sources.items():
        q = quantize_array(w, quantizer)
        error = float(jnp.sum(jnp.square(q.dequantize() - w)) / jnp.sum(jnp.square(w)))
        errors[name], bits = round(error, 6), bits or q.bits_per_element
    return {"format": form, "rule": rule, "bits": round(bits, 4), "error": errors}


def table(found: Mapping[str, Any]) -> Table:
    """Returns the entries of a run, errors in thousandths."""
    names = list(found["entries"][0]["error"])
    lines = [
        [e["format"], e["rule"], f"{e['bits']:.3f}", *(f"{1000 * e['error'][n]:.2f}" for n in names)]
        for e in sorted(found["entries"], key=lambda e: (round(e["bits"], 2), e["error"]["normal"]))
    ]
    return Table("grids", ["format", "rule", "bits", *(f"{n}, error / 1000" for n in names)], lines)
