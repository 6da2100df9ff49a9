"""Factors of channels by what rounding is expected to cost: the weights that read them, their inputs, the weights that make them.

Reference: Meller, Finkelstein, Almog, Grobman, Same, Same But Different: Recovering Neural Network Quantization Error Through Weight
Factorization, ICML 2019, https://arxiv.org/abs/1902.01917 (uniform noise of weights and activations under factors of channels); the family
of factors is SmoothQuant's (Xiao et al., 2023, https://arxiv.org/abs/2211.10438, Eq. (4)) with two exponents,
``s_i = max|x_i|^a / max|w_i|^b``: inputs are divided by ``s``, rows of the weight multiplied. With steps ``d`` of the grid of a weight
``w`` and ``e`` of that of its inputs ``x``, both after the factors, results are expected to be off by

    sum_in E[x_i^2] d_in^2 / (12 s_i^2) + e^2 / 12 sum_in (s_i w_in)^2,

over their worth ``sum_in E[x_i^2] w_in^2``, summed over all that reads the channels. A weight that makes them on a scale that several share
is off by ``d^2 / 12`` an entry, which what reads them passes on. The exponents with the least sum are taken; ``a = b = 0`` is among them.

Factors go into what makes the channels (`lowbit.program.pairs`), clips get a bound by channel: the executed graph stays. Where nothing takes
them, as before a residual sum, the inputs of a matrix product may be multiplied by them (``online``), parameters of the rewritten function.

Differs from the papers: every set of channels has exponents of its own, by the bits of the plan. Before a depthwise weight, whose rows
have scales of their own, ranges of inputs become equal at no cost.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lowbit.interpret.bind import bind
from lowbit.plan.rows import Plan, Row
from lowbit.program.evaluate import again
from lowbit.program.pairs import End
from lowbit.program.taps import Place

from .given import Given
from .products import Altered, Product, products, with_own
from .scaling import Model, Scaled, by_channel, kept_axes, reads

ROOT = "balance"


@dataclasses.dataclass(frozen=True)
class Balance(Given):
    """The rewrite.

    Attributes:
        steps: exponents tried of inputs, and as many of weights, evenly spaced in [0, 1].
        sweeps: over all sets of channels.
        online: whether inputs of matrix products are multiplied where nothing takes factors.
        rules: of what will be quantized, as `lowbit.bind` takes them, a text for all; `lowbit.quantize` gives its own.
    """

    steps: int = 6
    sweeps: int = 2
    online: bool = False
    rules: Any = dataclasses.field(default="w8,a8", repr=False)

    def __post_init__(self):
        if self.steps < 2 or self.sweeps < 1:
            raise ValueError(f"balance needs steps >= 2 and sweeps >= 1, got {self.steps} and {self.sweeps}")

    def ruled(self, rules: Any) -> "Balance":
        """Returns the same rewrite with rules."""
        return dataclasses.replace(self, rules=rules)

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Scaled | Altered, Any, Any]:
        model = Model(fn, params, state, self.batches, "balance", has_bounds=True)
        rules = {"**": self.rules} if isinstance(self.rules, str) else self.rules
        rows = _rows(bind(fn, rules, params, state, *model.args))
        chosen = [pair for pair in model.pairs.found if any(model.paths[end.leaf] in rows for end in pair.takers)]
        taken = {model.paths[end.leaf] for pair in chosen for end in pair.takers}
        matrices, others = products(model.traced)
        alone = [x for x in matrices if self.online and x.path in rows and x.path not in taken]
        wanted = {reads(end): kept_axes(end) for pair in chosen for end in pair.takers}
        seen = model.measure({**wanted, **{_place(product): (product.axis,) for product in alone}})
        factors, ratios = [np.ones(pair.size) for pair in chosen], [1.0] * len(chosen)
        for _, (i, pair) in itertools.product(range(self.sweeps), enumerate(chosen)):
            readers = [
                _Reader.of(
                    rows[path],
                    model.values(end.leaf),
                    end.channels,
                    _inputs(end, seen[reads(end)], pair.size, factors[i]),
                )
                for end in pair.takers
                if (path := model.paths[end.leaf]) in rows
            ]
            makers = [
                _Maker.of(rows[path], model.values(end.leaf), end.channels)
                for end in pair.makers
                if end.leaf >= 0 and (path := model.paths[end.leaf]) in rows
            ]
            s, ratio = self._least(pair.size, readers, [maker for maker in makers if maker is not None])
            model.scale(pair, 1.0 / s)
            factors[i], ratios[i] = factors[i] * s, ratios[i] * ratio
        for pair, s, ratio in zip(chosen, factors, ratios, strict=True):
            model.say(f"{model.names(pair.makers)} -> {model.names(pair.takers)}: {_said(s, ratio)}")
        own: dict[str, np.ndarray] = {}
        for product in [] if model.bounds else alone:
            if product.path in own:
                continue
            size = model.traced.params[product.leaf].shape[product.inner]
            channels = np.arange(size).reshape((-1, 1) if product.inner == 0 else (1, -1))
            inputs = {k: np.asarray(x, np.float64).reshape(-1) for k, x in seen[_place(product)].items()}
            reader = _Reader.of(rows[product.path], model.values(product.leaf), channels, inputs)
            s, ratio = self._least(size, [reader], [])
            if ratio < 1.0:
                own[product.path] = (1.0 / s).astype(np.float32)
                model.factors[product.leaf] = model.factors.get(product.leaf, 1.0) / own[product.path].reshape(
                    channels.shape
                )
                model.say(f"inputs of {product.path}: {_said(s, ratio)}")
        for path in rows:
            if path not in taken and path not in own:
                reason = "no parameter makes its inputs" + (
                    ", and multiplying them helps nothing or cannot be" if self.online else ""
                )
                why = others.get(path, reason) if self.online else reason
                model.say(f"{path}: left as it is: {why}")
        scaled, params, state = model.done()
        if not own:
            return scaled, params, state
        here = tuple(product for product in alone if product.path in own)
        return Altered(fn, "balance", ROOT, here, _multiplied, scaled.lines), with_own(params, ROOT, own), state

    def _least(
        self, size: int, readers: Sequence["_Reader"], makers: Sequence["_Maker"]
    ) -> tuple[Float[np.ndarray, " channels"], float]:
        """The factors with the least expected noise, and what it is over that without."""
        reach = np.max([reader.largest for reader in readers], axis=0)
        rows = np.max([reader.rows(size) for reader in readers], axis=0)
        is_live = (reach > 0) & (rows > 0)
        if not is_live.any():
            return np.ones(size), 1.0
        x, w = (np.where(is_live, np.log(np.where(is_live, each, 1.0)), 0.0) for each in (reach, rows))

        def noise(s: np.ndarray) -> float:
            return sum(reader.noise(s) + sum(reader.passed(maker.noise(s)) for maker in makers) for reader in readers)

        without = noise(np.ones(size))
        best, least = np.ones(size), without
        exponents = np.linspace(0.0, 1.0, self.steps)
        for a, b in itertools.product(exponents, exponents):
            log = a * x - b * w
            s = np.where(is_live, np.exp(log - np.mean(log[is_live])), 1.0)
            if (now := noise(s)) < least:
                best, least = s, now
        return (best, least / without) if least < 0.999 * without else (np.ones(size), 1.0)


def _multiplied(product: Product, equation: Any, values: list[Any], own: Any) -> Any:
    values[1 - product.side] = product.scaled(product.data(values), own)
    return again(equation, values)[0]


def _rows(plan: Plan) -> dict[str, Row]:
    """The first operation of every weight that is quantized, by leaf path."""
    rows: dict[str, Row] = {}
    for row in plan.rows:
        site = row.weight
        if site is not None and site.kind == "leaf" and site.spec is not None and row.primitive != "gather":
            rows.setdefault(site.key, row)
    return rows


def _place(product: Product) -> Place:
    return Place(product.address, 1 - product.side, is_operand=True)


def _inputs(end: End, seen: Mapping[str, Any], size: int, factors: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of the channels that an end reads, as factors have left them."""
    largest, power = (by_channel(end, seen[name], size, np.maximum) for name in ("largest", "power"))
    low = -by_channel(end, -np.minimum(seen["low"], 0.0), size, np.maximum)
    return {"largest": largest / factors, "low": low / factors, "power": power / factors**2}


def _said(s: np.ndarray, ratio: float) -> str:
    return f"{len(s)} channels divided by {s.min():.3g} to {s.max():.3g}, expected noise {ratio:.3f} of that without"


@dataclasses.dataclass(frozen=True)
class _Scales:
    """A weight's magnitudes as matrices, and which of them share a scale.

    Attributes:
        w: magnitudes.
        order: rows in the order of their groups.
        starts: where each group begins in it.
        group: of every row.
        index: of every scale.
        level: the largest.
    """

    w: Float[np.ndarray, "matrix rows columns"]
    order: Int[np.ndarray, " rows"]
    starts: Int[np.ndarray, " group"]
    group: Int[np.ndarray, " rows"]
    index: Int[np.ndarray, "matrix group columns"]
    level: float
    is_tied: bool

    @classmethod
    def of(cls, row: Row, leaf: np.ndarray) -> "_Scales":
        site = row.weight
        assert site is not None
        assert site.spec is not None
        group, scales = row.matrix.groups(site.spec, site.operand.stack)
        group, shape = np.asarray(group), scales.scale_shape
        index = np.asarray(scales.matrices(np.arange(int(np.prod(shape))).reshape(shape)))
        order = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[order], np.arange(index.shape[1]))
        w = np.abs(np.asarray(row.matrix.matrices(leaf)))
        return cls(w, order, starts, group, index, float(site.spec.format.reach), scales.is_tied)

    def noise(self, w: np.ndarray) -> np.ndarray:
        """Returns what rounding every entry of magnitudes ``w`` is expected to cost: a twelfth of the squared step, or the entry that becomes zero."""
        local = np.maximum.reduceat(w[:, self.order], self.starts, axis=1)
        reach = np.zeros(int(self.index.max()) + 1)
        np.maximum.at(reach, self.index, local)
        step = (reach / self.level)[self.index][:, self.group]
        return np.where(2.0 * w < step, w, step / np.sqrt(12.0)) ** 2


def _channels(row: Row, channels: np.ndarray) -> np.ndarray:
    view = row.matrix
    return np.asarray(view.matrices(np.broadcast_to(channels, view.shape)))


@dataclasses.dataclass(frozen=True)
class _Reader:
    """A weight that reads channels, and what it reads.

    Attributes:
        scales: of the weight.
        channels: of every row; -1 of rows that are none.
        largest: magnitude of every channel.
        low: the smallest value of every channel, zero or less.
        power: mean square of every channel.
        levels: steps of the inputs' range; infinite where inputs stay floats.
        is_affine: whether that range is from the smallest to the largest value.
    """

    scales: _Scales
    channels: Int[np.ndarray, "matrix rows"]
    largest: Float[np.ndarray, " channels"]
    low: Float[np.ndarray, " channels"]
    power: Float[np.ndarray, " channels"]
    levels: float
    is_affine: bool

    @classmethod
    def of(cls, row: Row, leaf: np.ndarray, channels: np.ndarray, seen: Mapping[str, np.ndarray]) -> "_Reader":
        spec = next((site.spec for site in row.sites if not site.is_weight), None)
        levels = np.inf
        if spec is not None and spec.format.is_integer:
            levels = float(spec.format.high - spec.format.low)
        low = np.minimum(seen["low"], 0.0)
        rows = _channels(row, channels)[:, :, 0]
        return cls(
            _Scales.of(row, leaf), rows, seen["largest"], low, seen["power"], levels,
            spec is None or not spec.symmetric,
        )  # fmt: skip

    def rows(self, size: int) -> np.ndarray:
        """The largest weight of every channel."""
        largest = np.zeros(size + 1)
        np.maximum.at(largest, self.channels, self.scales.w.max(axis=2))
        return largest[:-1]

    @property
    def worth(self) -> float:
        """What its results are worth."""
        return float(np.sum(np.append(self.power, 0.0)[self.channels] * np.sum(self.scales.w**2, axis=2)))

    def noise(self, s: np.ndarray) -> float:
        """Expected noise of weight and inputs over what the results are worth."""
        factor = np.append(s, 1.0)[self.channels]
        w = self.scales.w * factor[:, :, None]
        own = np.sum(self.scales.noise(w), axis=2) * np.append(self.power, 0.0)[self.channels] / factor**2
        width = np.max(self.largest / s) * (1.0 if self.is_affine else 2.0)
        if self.is_affine and np.any(self.low < 0):
            width += np.max(-self.low / s)
        inputs = (width / self.levels) ** 2 * np.sum(np.where(self.channels[:, :, None] >= 0, w, 0.0) ** 2)
        return float(np.sum(own) + inputs / 12.0) / max(self.worth, 1e-30)

    def passed(self, relative: np.ndarray) -> float:
        """What noise of its inputs costs, by channel over their power."""
        each = np.append(relative * self.power, 0.0)[self.channels] * np.sum(self.scales.w**2, axis=2)
        return float(np.sum(each)) / max(self.worth, 1e-30)


@dataclasses.dataclass(frozen=True)
class _Maker:
    """A weight that makes channels on scales that several of them share.

    Attributes:
        scales: of the weight.
        channels: of every entry; -1 of those that make none.
    """

    scales: _Scales
    channels: Int[np.ndarray, "matrix rows columns"]

    @classmethod
    def of(cls, row: Row, leaf: np.ndarray, channels: np.ndarray) -> "_Maker | None":
        scales = _Scales.of(row, leaf)
        return cls(scales, _channels(row, channels)) if scales.is_tied else None

    def noise(self, s: np.ndarray) -> np.ndarray:
        """Expected noise of every channel over its power, inputs taken as equal."""
        w = self.scales.w / np.append(s, 1.0)[self.channels]
        sums = np.zeros((2, len(s) + 1))
        for total, x in zip(sums, (self.scales.noise(w), w**2), strict=True):
            np.add.at(total, self.channels, x)
        off, power = sums[:, :-1]
        return off / np.where(power > 0, power, np.inf)


def balance(
    *, steps: int = 6, sweeps: int = 2, online: bool = False, rules: Any = "w8,a8", batches: Any = None
) -> Balance:
    """Returns the rewrite that moves factors of channels to where rounding is expected to cost least.

    Args:
        steps: exponents tried of inputs, and as many of weights.
        sweeps: over all sets of channels.
        online: whether inputs of matrix products are multiplied where nothing takes factors.
        rules: of what will be quantized.
        batches: what inputs are measured on. None: those of `lowbit.chain`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"g": jnp.ones(2), "w": jnp.array([[1.0], [1.0]])}
        >>> fn = lambda p, s, x: (jnp.sinh(x) * p["g"]) @ p["w"]
        >>> _, new, _ = balance(batches=[(jnp.array([[4.0, 0.1]]),)])(fn, params, {})
        >>> bool(new["w"][0, 0] > new["w"][1, 0])
        True
    """
    return Balance(steps, sweeps, online, rules, batches=batches)
