"""What an export takes: seconds and memory, in a process of its own, so that memory held before is known."""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import sys
import tempfile
import time
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowbit as lb
from lowbit.rewrites import batch_norm
from lowbit.run.measure import peak_memory
from lowbit.run.pieces import Piece
from lowbit.run.samples import arguments, chosen

from .column import Column, Eval, mean, size

FORMS = {"served": ("xla", "iree"), "universal": ("xla-universal", "iree-universal")}
"""Targets by the form that they take; every bundle holds the served one."""
_CONFIG = "lowbit_config"
"""The module that ``lowbit run`` makes of a config file."""


def export_cost(*forms: str) -> Eval:
    """Returns an eval: what `lowbit.export` of every method takes, of a sample.

    Kept are, by form, seconds, also of all cores together, bytes by which memory rose above what was held before (parameters
    packed, the float ones dropped), these in parts of the float parameters, and bytes of the stored module. Linux alone
    counts memory. The model's function is called again in the process, by its name: it is no lambda, nor inside another function.
    A method that rewrites the function, or whose recipe may, is left out, and said so.

    Args:
        *forms: of the bundle: ``served``, ``universal``; none means both.

    Raises:
        ValueError: for an unknown form.
    """
    forms = forms or tuple(FORMS)
    if unknown := [form for form in forms if form not in FORMS]:
        raise ValueError(f"export_cost: there is no form {unknown[0]!r}; there are {', '.join(FORMS)}")
    columns = []
    for form in forms:
        columns.append(Column(f"{form} s", ("export_cost", form, "seconds"), mean(".1f")))
        columns.append(Column(f"{form} memory/model", ("export_cost", form, "memory_of_model"), mean(".2f")))
        columns.append(Column(f"{form} stored", ("export_cost", form, "stored_bytes"), size))
    return Eval("export_cost", _ExportCost(forms), tuple(columns))


@dataclasses.dataclass(frozen=True)
class _ExportCost:
    forms: tuple[str, ...]

    def __call__(self, piece: Piece) -> Mapping[str, Any]:
        if piece.is_float:
            return {}
        if piece.method.recipe or piece.method.rewrites:
            why = "the method rewrites the function, which a process of its own does not have"
            piece.job.screen.say(f"{piece.name}: export_cost is left out: {why}", style="yellow")
            return {"export_cost": {"left_out": why}}
        model, x = piece.job.experiment.model, arguments(chosen(piece.test, slice(1)))
        place = _place(model)
        costs, file, is_folded = {}, piece.folder / "packed.safetensors", piece.method.freeze_norms is not None
        bar = piece.job.screen.start(f"{piece.name} export_cost", len(self.forms))
        for done, form in enumerate(self.forms):
            given = (model, piece.seed, file, x, form)
            with concurrent.futures.ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), _begin, (place,)
            ) as pool:
                costs[form] = pool.submit(
                    measured, *given, is_folded=is_folded, is_integer=piece.method.integer
                ).result()
            bar(done + 1)
        return {"export_cost": costs}


def _place(model: Any) -> str | None:
    """The config file, where a model's function is its own; None where it is in a module that is imported.

    Raises:
        ValueError: if it has no name to be found by.
    """
    while isinstance(model, functools.partial):
        model = model.func
    name, module = getattr(model, "__qualname__", "<"), getattr(model, "__module__", None)
    if "<" in name or module in (None, "__main__"):
        raise ValueError(
            f"export_cost: the model is made again in a process of its own, by the name of its function: give {name} one in a "
            "module, such as def build(seed)"
        )
    file = getattr(sys.modules.get(_CONFIG), "__file__", None)
    return str(Path(file).resolve()) if module == _CONFIG and file else None


def _begin(path: str | None) -> None:
    """Puts a config file where its functions say that they are from; its folder is in reach as it was in the first process."""
    if path is None:
        return
    module = types.ModuleType(_CONFIG)
    module.__file__ = path
    sys.modules[_CONFIG] = module
    exec(compile(Path(path).read_bytes(), path, "exec"), module.__dict__)


def measured(
    model: Any, seed: int, file: Path, x: tuple[np.ndarray, ...], form: str, *, is_folded: bool, is_integer: bool
) -> dict[str, float]:
    """Returns what one export took, of a process that has done nothing else.

    Args:
        model: of the experiment.
        seed: of it.
        file: packed parameters.
        x: the example, as arguments.
        form: of `FORMS`.
        is_folded: whether batch norms are folded.
        is_integer: whether the plan is full-integer: inputs and outputs are then codes.
    """
    network = model(seed)
    fn, state = network.fn, network.state
    model_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(network.params))
    if is_folded:
        fn, _, state = batch_norm.fold(*(jax.ShapeDtypeStruct(each.shape, each.dtype) for each in x))(
            fn, network.params, state
        )
    del network
    plan, qparams = lb.load(file)
    for leaf in jax.tree.leaves(qparams):
        np.asarray(leaf).sum()  # read from the file by now, and held
    args = (state, *map(jnp.asarray, x))
    with tempfile.TemporaryDirectory() as folder:
        start, work = time.perf_counter(), time.process_time()
        bundle, memory = peak_memory(
            lambda: lb.export(fn, plan, qparams, args, f"{folder}/model", integer_io=is_integer, targets=FORMS[form])
        )
        seconds, work = time.perf_counter() - start, time.process_time() - work
        artifact = "model.mlirbc" if form == "served" else "universal/model.mlirbc"
        stored = bundle.manifest["files"][artifact]["deflated"]
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(work, 2),
        "memory_bytes": memory,
        "memory_of_model": round(memory / model_bytes, 3),
        "model_bytes": model_bytes,
        "packed_bytes": qparams.nbytes,
        "stored_bytes": stored,
    }
