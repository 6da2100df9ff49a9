"""Which rule of scale is best for which 4-bit format: the error of weights at equal total bits, scales included.

Command::

    lowbit run experiments/configs/study_grids.py

Needs 4 minutes on 2 CPU cores. It rounds normal numbers, and the weights of those pretrained networks whose packages are
installed (BlazeFace, MobileNetV2, MiniLM: the readers in ``experiments/models`` name them), in every format with every
rule, and prints and writes, as ``grids.json``, the squared error over the squared weights. No data is seen. Which default
follows from it stands in ``papers/grids.md``.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from experiments.models import blazeface, minilm, mobilenet_v2
from lowbit.core.ranges import Full, PowerOfTwo, RangeRule
from lowbit.core.searching import FourOverSix, Searched
from lowbit.formats.lookup import spec_from_text
from lowbit.quantizers.rtn import RTN
from lowbit.report.tables import Table, text
from lowbit.run import Dataset, Experiment, Method, Model, Suite, unlabelled, weight_error
from lowbit.run.folder import RunFolder, write_json
from lowbit.run.results import Results

RULES: dict[str, RangeRule] = {
    "absmax": Full(),
    "even": PowerOfTwo("even"),
    "four over six": FourOverSix(),
    "searched": Searched(),
    "searched, outer too": Searched(outer=(1.0, 0.95, 0.9, 0.85, 0.8)),
}
"""Rules by the name of the table; a rule that does not fit a format is left out there."""


FORMATS = (
    "int4/g32/float16", "int4/g32/float16/signed", "int4/g32/int4", "int4/g32/int5", "int4/g16/int5", "int4/g32/int6",
    "int4/g32/e4m3/signed", "int4/g16/e4m3/signed", "int4n/g16/e4m3", "int4/g64/float16/signed",
    "int4/g128/float16/signed", "nf4/g32/float16", "nf4/g32/float16/signed", "nf4/g64/float16", "nf4/g64/float16/signed",
    "nf4/g32/int5", "nf4/g16/e4m3/signed", "nvfp4", "mxfp4", "mxint4",
)  # fmt: skip
"""Rule texts of weights, without their letter."""
ROWS = 64
"""Of normal numbers, of 2048 each."""
MOST = 150_000
"""Weights taken of a network, about, over the layers of the commonest number of inputs."""


def normal() -> Any:
    """Returns normal numbers."""
    return jax.random.normal(jax.random.key(0), (ROWS, 2048))


SOURCES: dict[str, Callable[[], Any]] = {
    "normal": normal,
    "blazeface": lambda: matrix(blazeface.load().params),
    "mobilenet_v2": lambda: matrix(mobilenet_v2.load().params),
    "minilm": lambda: matrix(minilm.load().params),
}
"""What is rounded, by name; what is not installed is left out, and said so."""


def matrix(params: Any, most: int = MOST) -> jax.Array:
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


def product(params: Any, state: Any, x: jax.Array) -> jax.Array:
    """The matrix as a layer: ``[batch, out]`` of ``[batch, in]``."""
    return x @ params["weight"].T


def build(source: Callable[[], Any], seed: int) -> Model:
    """Returns the layer of a source; ``seed`` is not used."""
    return Model(product, {"weight": source()}, {})


def one(source: Callable[[], Any]) -> Dataset:
    """Returns one input, which nothing is measured on."""
    return unlabelled("one input", np.ones((1, source().shape[1]), np.float32))


def quantizer(form: str, rule: str) -> RTN | None:
    """Returns the quantizer of a format under a rule, or None where they do not go together."""
    try:
        found = RTN(spec_from_text(form, is_weight=True), RULES[rule])
    except ValueError:
        return None
    return None if "outer" in rule and found.spec.scale.spec is None else found  # the same as without


PAIRS = {
    re.sub("[^a-z0-9]+", "_", f"{form} {rule}"): (form, rule, found)
    for form in FORMATS
    for rule in RULES
    if (found := quantizer(form, rule)) is not None
}
"""Format, rule and quantizer by the name of the method."""


def report(found: Sequence[Results], folder: RunFolder) -> None:
    """Writes ``grids.json``: bits and errors of every format under every rule, by source; prints the table."""
    entries = []
    for name, (form, rule, _) in PAIRS.items():
        rows = {each.experiment.name: row for each in found for row in each.rows if row.name == name and row.results}
        errors = {source: round(row.values("weight_error")[0], 6) for source, row in rows.items()}
        if errors:
            bits = next(iter(rows.values())).values("bits_per_weight")[0]
            entries.append({"format": form, "rule": rule, "bits": round(bits, 4), "error": errors})
    asked = {"name": config.name, "formats": FORMATS, "rules": list(RULES), "rows": ROWS, "most": MOST}
    asked["networks"] = [name for name in SOURCES if name != "normal"]
    content = {"config": asked, **folder.environment, "missing": dict(folder.absent), "entries": entries}
    write_json(folder.path / "grids.json", content)
    print(text(table(content)))
    print(f"\n{folder.path / 'grids.json'}")


def table(found: Mapping[str, Any]) -> Table:
    """Returns the entries of a run, errors in thousandths."""
    names = list(found["entries"][0]["error"])
    lines = [
        [e["format"], e["rule"], f"{e['bits']:.3f}", *(f"{1000 * e['error'][n]:.2f}" for n in names)]
        for e in sorted(found["entries"], key=lambda e: (round(e["bits"], 2), e["error"]["normal"]))
    ]
    return Table("grids", ["format", "rule", "bits", *(f"{n}, error / 1000" for n in names)], lines)


config = Suite(
    "study_grids",
    tuple(
        Experiment(
            name=name,
            data=functools.partial(one, source),
            model=functools.partial(build, source),
            metric=None,
            methods=tuple(Method(key, {"**": lb.Quantizers(weight=q)}) for key, (_, _, q) in PAIRS.items()),
            seeds=(0,),
            evals=(weight_error(),),
            report=lambda results: None,
        )
        for name, source in SOURCES.items()
    ),
    report,
)
