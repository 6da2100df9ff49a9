"""Finds what there is to test: every factory of `lowbit.quantizers` with the rule texts it accepts.

A factory is a public function of a quantizer module that returns `Quantizers`. Which texts it accepts is found by
building them: a refusal must be a ValueError. Nothing here names a method or a format.
"""

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import typing
import zlib

import jax
import jax.numpy as jnp
import numpy as np

import lowbit.quantizers
from lowbit.core.quantizer import Quantizer, Quantizers
from lowbit.core.spec import Operand
from lowbit.formats.lookup import format_words

WEIGHT_OPTIONS = (
    "",
    "/tensor",
    "/g32",
    "/affine",
    "/g16/bfloat16",
    "/g5",
    "/g8/dq",
    "/t8x4",
    "/g16/e8m0",
    "/g7/e4m3",
    "/signed",
    "/g16/int5",
    "/g8/uint4",
)
INPUT_OPTIONS = ("", "/sym", "/dynamic", "/tensor/float16", "/g16/dynamic")
PER_FACTORY = {"w": 3, "a": 1}
"""Texts per factory and letter, spread evenly over those it accepts; offsets differ, so together they cover more."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One quantizer with an operand that suits it."""

    quantizer: Quantizer
    operand: Operand
    label: str

    def data(self, dtype="float32", seed=0):
        """Heavy-tailed, distinct values; non-negative where the grid is."""
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(self.label.encode()) & 0x7FFFFFFF)
        x = jax.random.t(key, 2.0, self.operand.shape, jnp.float32)
        spec = self.quantizer.spec
        if spec.symmetric and spec.format.low >= 0:
            x = jnp.abs(x)
        return x.astype(dtype)

    def stats(self, x):
        if self.operand.is_weight:
            return {"values": x}
        found = {}
        for statistic in self.quantizer.needs(self.operand):
            state = statistic.init(self.operand)
            for batch in (x, x * jnp.asarray(0.5, x.dtype)):
                state = statistic.update(state, batch, self.operand)
            found[statistic.name] = statistic.finish(state)
        return found

    def start(self, dtype="float32"):
        """Data and the state made of it, compiled once for all contracts."""
        return _start(self, dtype)

    def state(self, x):
        return self.quantizer.init(
            dataclasses.replace(self.operand, dtype=str(x.dtype)), self.stats(x), jax.random.key(1)
        )


@functools.cache
def _start(case, dtype):
    x = case.data(dtype)
    return x, jax.jit(case.state)(x)


@functools.cache
def factories():
    """Every factory, by name."""
    found = {}
    for info in pkgutil.iter_modules(lowbit.quantizers.__path__):
        module = importlib.import_module(f"lowbit.quantizers.{info.name}")
        for name, function in vars(module).items():
            is_public = inspect.isfunction(function) and not name.startswith("_")
            if not is_public or function.__module__ != module.__name__:
                continue
            if typing.get_type_hints(function).get("return") is Quantizers:
                found[name] = function
    return found


def _texts(letter):
    options = WEIGHT_OPTIONS if letter == "w" else INPUT_OPTIONS
    return [f"{letter}{word}{option}" for word in format_words() for option in options]


def _accepted(factory, letter):
    found = []
    for text in _texts(letter):
        try:
            quantizers = factory(text)
        except ValueError:
            continue
        found.append((text, quantizers.weight if letter == "w" else quantizers.input))
    return found


@functools.cache
def cases():
    """A spread of cases over all factories."""
    found = []
    for name, factory in factories().items():
        for letter in "wa":
            accepted = _accepted(factory, letter)
            count = min(PER_FACTORY[letter], len(accepted))
            step = len(accepted) // max(count, 1)
            offset = zlib.crc32(name.encode()) % max(step, 1)
            for text, quantizer in [accepted[i * step + offset] for i in range(count)]:
                operand = (
                    Operand((70, 6), contract=(0,))
                    if letter == "w"
                    else Operand((5, 70), contract=(1,), is_weight=False)
                )
                found.append(Case(quantizer, operand, f"{name}({text})"))
    return tuple(found)


def parts(case):
    """What a case tries: its format, how it stores scales, who shares them, and whether it has zero points."""
    spec = case.quantizer.spec
    return {spec.format.name, spec.scale, type(spec.granularity), (case.operand.is_weight, spec.symmetric)}


def some(turn):
    """Every input, a weight of every factory, another one for another ``turn``, and then what it takes until each of `parts` is
    tried by some factory."""
    found = [case for case in cases() if not case.operand.is_weight]
    weights = [case for case in cases() if case.operand.is_weight]
    for n, name in enumerate(factories()):
        own = [case for case in weights if case.label.startswith(f"{name}(")]
        found += own[(n + turn) % len(own) :][:1] if own else []
    tried = set().union(*map(parts, found))
    for case in weights:
        if not parts(case) <= tried:
            found.append(case)
            tried |= parts(case)
    return found


def carries(spec, dtype):
    """Whether a value of the grid finds its code again after rounding to ``dtype``: its error stays below half a level."""
    if not spec.format.is_integer:
        return True
    unit = 2.0 ** -{"float32": 24, "bfloat16": 8, "float16": 11}[str(np.dtype(dtype))]
    low, high = spec.format.low, spec.format.high
    most = max(-low, high) if spec.symmetric else high - low
    return most * unit / (1.0 + unit) < 0.499


def bits(x):
    """The bit pattern of a float array, to compare to the last bit, NaN and signed zeros included."""
    x = np.asarray(x)
    return x.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[x.dtype.itemsize])
