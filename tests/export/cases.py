"""Small exported models, each made once."""

import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import lowbit as lb
from lowbit.export import manifest
from lowbit.export.bundle import Bundle, export
from tests.values import heavy_tailed as normal


class Case(NamedTuple):
    fn: Any
    plan: Any
    qparams: Any
    args: tuple[Any, ...]
    bundle: Bundle


@functools.cache
def _root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()


def folder(name: str) -> Path:
    return Path(_root().name) / name


def signed(folder: Path, change=None, files=()) -> Path:
    """Makes the checksums and the digest right again, as whoever alters a bundle on purpose does."""
    said = json.loads((folder / "manifest.json").read_text())
    for name in files:
        data = (folder / name).read_bytes()
        said["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if change is not None:
        change(said)
    (folder / "manifest.json").write_bytes(manifest.encoded(said)[1])
    return folder


def packed(fn, rules, params, *args):
    plan = lb.bind(fn, rules, params, *args)
    return plan, lb.pack(plan, params, lb.init(fn, plan, params, *args))


def two_layers(params, x):
    return jax.nn.relu(x @ params["a"] + params["c"]) @ params["b"]


@functools.cache
def mlp(rule: str = "w4,a8") -> Case:
    params = {"a": normal(0, 64, 48), "b": normal(1, 48, 10), "c": normal(2, 48)}
    args = (normal(3, 4, 64),)
    plan, qparams = packed(two_layers, {"**": rule}, params, *args)
    name = "".join(c if c.isalnum() else "_" for c in rule)
    return Case(two_layers, plan, qparams, args, export(two_layers, plan, qparams, args, folder(name)))


def convolution(params, x):
    y = jax.lax.conv_general_dilated(x, params["k"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(y).reshape(len(x), -1) @ params["d"]


@functools.cache
def cnn() -> Case:
    params = {"k": normal(4, 3, 3, 4, 32), "d": normal(5, 512, 10)}
    args = (normal(6, 2, 8, 8, 4),)
    plan, qparams = packed(convolution, {"**": "w4,a8"}, params, *args)
    return Case(convolution, plan, qparams, args, export(convolution, plan, qparams, args, folder("cnn")))


def recurrent(params, inputs, state):
    hidden = jnp.tanh(inputs["now"] @ params["x"] + state["hidden"] @ params["h"])
    return {"out": hidden @ params["o"], "state": {"hidden": hidden}}
