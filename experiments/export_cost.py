"""What one export of a decoder takes: called in a process of its own, that memory held before be known."""

import tempfile
import time
from typing import Any

import jax

import lowbit as lb
from experiments.models import decoder
from lowbit.run.measure import peak_memory

FORMS = {"served": ("xla", "iree"), "universal": ("xla-universal", "iree-universal")}
"""Targets by the form that they take; every bundle holds the served one."""


def measured(sizes: decoder.Sizes, rule: str, form: str) -> dict[str, Any]:
    """Returns what one export took: seconds, also of all cores together, bytes above those held before, bytes of the model and of its files."""
    key = jax.random.key(0)
    params = jax.jit(decoder.init, static_argnums=1)(key, sizes)
    cache = (sizes.layers, sizes.heads, sizes.context, sizes.width // sizes.heads)
    shapes = [(1, sizes.width), cache, cache]
    args = tuple(jax.random.normal(jax.random.fold_in(key, i), shape) for i, shape in enumerate(shapes))
    plan = lb.bind(decoder.decode, {"**": rule}, params, *args)
    qparams = lb.pack(plan, params, lb.init(decoder.decode, plan, params, *args))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    del params
    with tempfile.TemporaryDirectory() as folder:
        start, work = time.perf_counter(), time.process_time()
        bundle, memory = peak_memory(
            lambda: lb.export(decoder.decode, plan, qparams, args, f"{folder}/model", targets=FORMS[form])
        )
        seconds, work = time.perf_counter() - start, time.process_time() - work
        artifact = "model.mlirbc" if form == "served" else "universal/model.mlirbc"
    return {
        "rule": rule,
        "form": form,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(work, 2),
        "memory_bytes": memory,
        "memory_of_model": round(memory / size, 3),
        "model_bytes": size,
        "packed_bytes": qparams.nbytes,
        "stored_bytes": bundle.manifest["files"][artifact]["deflated"],
    }
