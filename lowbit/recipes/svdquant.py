"""SVDQuant: outliers move from inputs into the weight, the largest directions of the weight into two thin float products, and the rest is rounded.

Reference: Li, Lin, Zhang, Cai, Li, Guo, Xie, Meng, Zhu, Han, SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion
Models, ICLR 2025, https://arxiv.org/abs/2411.05007, section 4.2: ``x^ = x diag(s)^-1``, ``W^ = diag(s) W``, ``W^ = A B + R`` by the ``k`` largest
singular values, and ``y = x^ A B + Q(x^) Q(R)``, so that 4-bit inputs and weights both meet a tensor without outliers.

The function is rewritten before it is bound: ``R`` takes the place of ``W``, ``A``, ``B`` and ``1 / s`` are parameters of their own that stay floats
whatever the plan does, and count in the size. ``s`` is SmoothQuant's with the exponent that is expected to lose least, of several:
``sum_i E[x_i^2] |Q(R_i) - R_i|^2 / s_i^2 + e^2 / 12 |R|^2``, with ``e`` the step of the grid of ``x^``. GPTQ rounds ``R``, and
``B`` is fitted again to what that leaves.

Differs from the paper: exponents are judged by that sum, not by running the layer; rank is what fits in a number of bits per weight;
``A`` and ``B`` are stored in bfloat16, and ``R`` is what that leaves. Weights with any other use than products of data with the whole
matrix (convolutions, loops, look-ups) stay as they are, and the rewrite says so.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lowbit.core.paths import flatten
from lowbit.core.quantizer import Quantizer
from lowbit.core.ranges import MSE
from lowbit.core.spec import Operand, Spec
from lowbit.interpret.bind import bind
from lowbit.plan.rows import Row
from lowbit.program.evaluate import again
from lowbit.program.taps import Place
from lowbit.rewrites.products import Altered, Product, products, with_own
from lowbit.rewrites.scaling import Model

from .gptq import GPTQ
from .recipe import Recipe, Remainder
from .thin import ThinProducts, damped, fitted

ROOT = "svdquant"


@dataclasses.dataclass(frozen=True)
class LowRankPart(ThinProducts):
    """The rewrite: ``(x^ A) B`` beside ``x^ R``.

    Attributes:
        steps: exponents tried, evenly spaced in [0, 1].
    """

    steps: int = 11
    rules: Any = dataclasses.field(default="w4,a4", repr=False)

    def __post_init__(self):
        super().__post_init__()
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, got {self.steps}")

    def __call__(self, fn: Callable[..., Any], params: Any, state: Any) -> tuple[Altered, Any, Any]:
        model = Model(fn, params, state, self.batches, "svdquant")
        rules = {"**": self.rules} if isinstance(self.rules, str) else self.rules
        plan = bind(fn, rules, params, state, *model.args)
        sites = plan.leaf_sites()
        rows = {row.weight.key: row for row in plan.rows if row.weight is not None and row.weight.key in sites}
        quantized = {path for path in rows if sites[path].spec is not None}
        matrices, others = products(model.traced)
        chosen = [product for product in matrices if product.path in quantized]
        names = {_place(product): product.path for product in chosen}
        seen = model.measure({_place(product): (product.axis,) for product in chosen}, names)
        own, left = {}, {}
        for path, of_weight in _by_path(chosen).items():
            inputs = _joined([seen[_place(product)] for product in of_weight])
            own[path], left[path], alpha = self._parts(
                rows[path], of_weight[0], model.values(of_weight[0].leaf), inputs
            )
            a, b = own[path]["a"], own[path]["b"]
            bits = 8.0 * (a.nbytes + b.nbytes) / left[path].size
            model.say(f"{path} -> rank {a.shape[1]}: {bits:.2f} bits per weight, inputs smoothed by {alpha:.1f}")
        for path in sorted(quantized - set(own)):
            model.say(f"{path}: left as it is: {others.get(path, 'it is read by no product with a matrix')}")
        paths, leaves, tree = flatten(params)
        leaves = [jnp.asarray(left[p], x.dtype) if p in left else x for p, x in zip(paths, leaves, strict=True)]
        params = jax.tree.unflatten(tree, leaves)
        return (
            Altered(fn, "svdquant", ROOT, tuple(chosen), _beside, tuple(model.lines)),
            (with_own(params, ROOT, own) if own else params),
            state,
        )

    def _parts(
        self, row: Row, product: Product, leaf: np.ndarray, inputs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], np.ndarray, float]:
        """Returns ``1 / s``, ``A`` and ``B`` of one weight, what is left of it, and the exponent of ``s``."""
        site = row.weight
        assert site is not None
        assert site.quantizer is not None
        spec = next((other.spec for other in row.sites if not other.is_weight), None)
        w = leaf if product.inner == 0 else leaf.T
        inner, outer = w.shape
        rank, _ = self.rank_of(inner, outer)
        largest, power = inputs["largest"], inputs["power"]
        tried = []
        for alpha in np.linspace(0.0, 1.0, self.steps):
            s = _smoothed(largest, np.abs(w).max(axis=1), float(alpha))
            a, b = _thin(w * s[:, None], rank, self.dtype)
            rest = (w * s[:, None] - a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)
            rest = rest if product.inner == 0 else rest.T
            kept = np.asarray(_nearest(site.quantizer, site.operand, jnp.asarray(rest)))
            off = np.square(kept.astype(np.float64) - rest).sum(axis=1 - product.inner)
            step = _step(spec, inputs["low"] / s, largest / s)
            lost = np.sum(power / s**2 * off) + step**2 / 12 * np.sum(np.square(rest, dtype=np.float64))
            tried.append((float(lost), float(alpha), s, a, b, rest))
        _, alpha, s, a, b, rest = min(tried, key=lambda each: each[0])
        return {"factors": (1.0 / s).astype(np.float32), "a": a, "b": b}, rest, alpha


def _by_path(chosen: list[Product]) -> dict[str, list[Product]]:
    by_path: dict[str, list[Product]] = {}
    for product in chosen:
        by_path.setdefault(product.path, []).append(product)
    return by_path


def _place(product: Product) -> Place:
    return Place(product.address, 1 - product.side, is_operand=True)


def _joined(seen: list[Any]) -> dict[str, np.ndarray]:
    """Statistics of the inputs of all products of a weight, by channel."""
    how: dict[str, Any] = {"largest": np.max, "low": np.min, "power": np.mean}
    return {name: join([x[name].reshape(-1) for x in seen], axis=0) for name, join in how.items()}


def _smoothed(inputs: np.ndarray, rows: np.ndarray, alpha: float) -> Float[np.ndarray, " in"]:
    """Returns ``s``, of geometric mean one; 1 where an input or its row is zero throughout."""
    is_live = (inputs > 0) & (rows > 0)
    x, w = (np.where(is_live, each, 1.0) for each in (inputs, rows))
    s = x**alpha / w ** (1.0 - alpha)
    s = s / np.exp(np.mean(np.log(s[is_live]))) if is_live.any() else s
    return np.where(is_live, s, 1.0)


def _thin(w: np.ndarray, rank: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns ``A`` and ``B`` of the largest singular values, as they are stored; ``B`` fitted to the stored ``A``."""
    is_wide = w.shape[0] <= w.shape[1]
    powers, vectors = np.linalg.eigh(w @ w.T if is_wide else w.T @ w)
    sizes = np.sqrt(np.maximum(powers[::-1][:rank], 1e-30))
    first = vectors[:, ::-1][:, :rank]
    a = np.asarray(jnp.asarray((first if is_wide else w @ first / sizes) * np.sqrt(sizes), dtype))
    b = np.linalg.lstsq(a.astype(np.float64), w, rcond=None)[0]
    return a, np.asarray(jnp.asarray(b, dtype))


def _step(spec: Spec | None, low: np.ndarray, largest: np.ndarray) -> float:
    """The step of a grid that holds all inputs; 0 where they stay floats."""
    if spec is None or not spec.format.is_integer:
        return 0.0
    if spec.symmetric:
        return float(largest.max() / spec.format.reach)
    return float((largest.max() - min(low.min(), 0.0)) / (spec.format.high - spec.format.low))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _nearest(quantizer: Quantizer, operand: Operand, weight: Any) -> Any:
    state = quantizer.init(operand, {"values": weight}, jax.random.key(0))
    return quantizer.quantize(state, weight, operand).dequantize()


def _beside(product: Product, equation: Any, values: list[Any], own: Any) -> Any:
    x = product.scaled(product.data(values), own["factors"])
    values[1 - product.side] = x
    whole = again(equation, values)[0]
    return whole + product.through(x, own["a"], own["b"]).astype(whole.dtype)


@dataclasses.dataclass(frozen=True)
class FittedPart(Remainder):
    """``B`` fitted again, to what rounding left of ``R``, in the norm of its inputs.

    Attributes:
        damping: added to the diagonal of ``H``, as a share of its mean.
    """

    damping: float = 0.01

    root: ClassVar[str] = ROOT

    def taken(
        self,
        own: Mapping[str, Any],
        off: Float[np.ndarray, "matrix inner columns"],
        moment: Float[np.ndarray, "matrix inner inner"] | None,
    ) -> tuple[dict[str, Any], Float[np.ndarray, "matrix inner columns"]]:
        (first, second) = (next(path for path in own if path.endswith(f"/{end}")) for end in "ab")
        a, b = (np.asarray(own[path], np.float64) for path in (first, second))
        left = off[0].astype(np.float64)
        h = damped(moment, len(left), self.damping)
        moved = np.asarray(jnp.asarray(b + fitted(a, left, h), own[second].dtype))
        return {**own, second: moved}, (a @ (moved.astype(np.float64) - b))[None].astype(np.float32)


def recipe() -> Recipe:
    """Returns the recipe ``svdquant``."""
    return Recipe("svdquant", GPTQ(), rewrite=LowRankPart(), inputs=MSE(), passes=4, remainder=FittedPart())
