"""Solvers against laws and against float64 numpy: never against themselves."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from lowbit.core.grid import Grid
from lowbit.formats.codebook import NF4
from lowbit.formats.integer import Integer
from lowbit.solvers.adaround import AdaRound, adaround
from lowbit.solvers.descent import descend, refit
from lowbit.solvers.factor import error, factor
from lowbit.solvers.gptq import _gptq, gptq
from lowbit.solvers.search import optimal_clip, searched
from lowbit.solvers.target import target


def uniform(size, columns, scale, bits=8):
    return Grid(jnp.full((1, columns), scale, jnp.float32), None, jnp.zeros(size, jnp.int32), Integer(bits))


def autoregressive(size, correlation):
    places = np.arange(size)
    return correlation ** np.abs(places[:, None] - places[None])


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def loss64(w, q, h):
    off = np.asarray(q, np.float64) - np.asarray(w, np.float64)
    return float(np.einsum("kn,kj,jn->", off, np.asarray(h, np.float64), off))


def by_the_paper(w, h, scale, low, high, order):
    """GPTQ's Algorithm 1 in float64: the inverse of H, its Cholesky factor, errors spread over the rows to come."""
    left = np.asarray(w, np.float64)[order].copy()
    inverse = np.linalg.inv(np.asarray(h, np.float64)[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    done = np.zeros_like(left)
    for i in range(len(left)):
        done[i] = np.clip(np.round(left[i] / scale), low, high) * scale
        left[i + 1 :] -= upper[i, i + 1 :, None] * ((left[i] - done[i]) / upper[i, i])
    values = np.zeros_like(done)
    values[order] = done
    return values


@pytest.mark.parametrize("order", ["natural", "diagonal", "reversed"])
def test_gptq_is_the_papers(order):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(600, 200)) @ rng.normal(size=(200, 200)) * 0.1
    w, h = normal(rng, 200, 48), jnp.asarray(inputs.T @ inputs / 600, jnp.float32)
    known, grid = factor(h, order=order), uniform(200, 48, 0.4, 4)
    expected = by_the_paper(w, known.damped, 0.4, -8, 7, np.asarray(known.order))
    got = np.asarray(grid.values(gptq(w, known, grid)))
    assert (np.abs(got - expected) < 0.1).mean() > 0.999  # a step is 0.4; float32 may flip a tie
    assert abs(loss64(w, got, h) / loss64(w, expected, h) - 1) < 1e-3


@pytest.mark.parametrize("correlation", [0.5, 0.9, 0.99])
def test_gptq_over_nearest_is_the_ratio_of_conditional_to_marginal_variance(correlation):
    """``sum c_i / tr H = (1 + (n - 1)(1 - r^2)) / n``; without Cholesky (as two peers had it) it is .760, .352, .260."""
    rng = np.random.default_rng(1)
    size, columns = 128, 1024
    h = jnp.asarray(autoregressive(size, correlation), jnp.float32)
    w, grid = normal(rng, size, columns), uniform(size, columns, 0.03)
    known = factor(h, damping=0.0, order="natural")
    law = (1 + (size - 1) * (1 - correlation**2)) / size
    assert float(jnp.sum(known.variance)) / size == pytest.approx(law, rel=1e-4)
    ratio = loss64(w, grid.values(gptq(w, known, grid)), h) / loss64(w, grid.nearest(w), h)
    # Errors are uniform and independent: the relative deviation of a sum of squares over the outputs.
    assert ratio == pytest.approx(law, rel=5 / np.sqrt(columns))


def test_orders_obey_their_bounds():
    """The product of ``c`` is ``det H`` in any order, so the geometric over the arithmetic mean bounds the ratio."""
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(96, 96)))[0]
    h = (basis * np.exp(-np.arange(96) / 12.0)) @ basis.T + 1e-4 * np.eye(96)
    eigen = np.linalg.eigvalsh(h)
    bound = np.exp(np.log(eigen).mean()) / np.diag(h).mean()
    for order in ("natural", "diagonal", "reversed"):
        known = factor(jnp.asarray(h, jnp.float32), damping=0.0, order=order)
        variance = np.asarray(known.variance, np.float64)
        assert np.log(variance).sum() == pytest.approx(np.log(eigen).sum(), rel=1e-3)
        assert variance.sum() / np.trace(h) >= bound * 0.999


def test_no_row_passes_babais_bound():
    """Unclipped, the error of an output is at most ``sum s^2 c_i / 4`` (Chen et al., 2025, arXiv 2507.18553)."""
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(300, 64)) @ rng.normal(size=(64, 64))
    h = jnp.asarray(inputs.T @ inputs / 300, jnp.float32)
    w, grid, known = normal(rng, 64, 256), uniform(64, 256, 0.05), factor(h, damping=0.0)
    off = np.asarray(grid.values(gptq(w, known, grid)), np.float64) - np.asarray(w, np.float64)
    errors = np.einsum("kn,kj,jn->n", off, np.asarray(h, np.float64), off)
    assert errors.max() <= 0.25 * 0.05**2 * float(jnp.sum(known.variance)) * (1 + 1e-3)


def test_white_inputs_leave_nothing_to_gain():
    rng = np.random.default_rng(4)
    w, grid = normal(rng, 150, 8), uniform(150, 8, 0.3, 4)
    levels = gptq(w, factor(jnp.eye(150), damping=0.0), grid)
    np.testing.assert_array_equal(levels, grid.levels(w))


def test_brute_force_is_not_beaten_and_descent_only_helps():
    rng = np.random.default_rng(5)
    size, columns = 5, 12
    inputs = rng.normal(size=(40, size)) @ rng.normal(size=(size, size))
    h = jnp.asarray(inputs.T @ inputs / 40, jnp.float32)
    w, grid, known = normal(rng, size, columns), uniform(size, columns, 0.7, 2), factor(h, damping=0.0)
    choices = np.array(list(itertools.product([-2, -1, 0, 1], repeat=size)), np.float64) * 0.7
    off = choices[:, :, None] - np.asarray(w, np.float64)[None]
    best = np.einsum("ckn,kj,cjn->cn", off, np.asarray(h, np.float64), off).min(0)

    def errors(levels):
        return np.asarray(error(w, grid.values(levels), h), np.float64)

    start = gptq(w, known, grid)
    after = descend(w, start, known.damped, grid, sweeps=4)
    learned = adaround(w, h, grid, AdaRound(steps=400))
    assert (best <= errors(after) * (1 + 1e-4) + 1e-6).all()
    assert (errors(after) <= errors(start) * (1 + 1e-5) + 1e-7).all()
    assert (errors(learned) <= errors(grid.levels(w)) * (1 + 1e-5) + 1e-7).all()
    assert errors(after).sum() < 0.999 * errors(grid.levels(w)).sum()
    # Up or down is a smaller choice than any level, and AdaRound finds the best of it on most outputs.
    low = np.clip(np.floor(np.asarray(w, np.float64) / 0.7), -2, 1)
    ups = np.array(list(itertools.product([0, 1], repeat=size)), np.float64)
    near = np.clip(low[None] + ups[:, :, None], -2, 1) * 0.7 - np.asarray(w, np.float64)[None]
    nearest_best = np.einsum("ckn,kj,cjn->cn", near, np.asarray(h, np.float64), near).min(0)
    assert (errors(learned) <= nearest_best * 1.0001 + 1e-6).mean() >= 0.75


def test_refit_is_least_squares():
    rng = np.random.default_rng(6)
    size, columns, group = 64, 6, 16
    inputs = rng.normal(size=(200, size)) @ rng.normal(size=(size, size)) * 0.2
    h = jnp.asarray(inputs.T @ inputs / 200, jnp.float32)
    w = normal(rng, size, columns)
    groups = jnp.arange(size, dtype=jnp.int32) // group
    grid = Grid(jnp.full((size // group, columns), 0.35, jnp.float32), None, groups, Integer(4))
    levels = grid.levels(w)
    found = np.asarray(refit(w, levels, h, grid).scale, np.float64)
    member = np.eye(size // group)[np.asarray(groups)]
    for n in range(columns):
        basis = np.asarray(levels, np.float64)[:, n, None] * member
        h64 = np.asarray(h, np.float64)
        expected = np.linalg.solve(basis.T @ h64 @ basis, basis.T @ h64 @ np.asarray(w, np.float64)[:, n])
        np.testing.assert_allclose(found[:, n], expected, rtol=2e-3)


def test_search_finds_what_a_dense_scan_finds():
    rng = np.random.default_rng(7)
    w = jnp.asarray(rng.standard_t(3, size=(32, 5)), jnp.float32)
    value = jnp.asarray(rng.uniform(0.1, 4.0, 32), jnp.float32)
    base = Grid(jnp.ones((1, 5)), None, jnp.zeros(32, jnp.int32), Integer(4))
    for is_signed in (False, True):
        found = searched(w, value, base, steps=256, is_signed=is_signed)
        w64, v64 = np.asarray(w, np.float64), np.asarray(value, np.float64)[:, None]

        def loss(scale, w64=w64, v64=v64):
            return (v64 * (np.clip(np.round(w64 / scale), -8, 7) * scale - w64) ** 2).sum(0)

        full = np.abs(w64).max(0) / (8 if is_signed else 7)
        dense = np.linspace(0.4, 1.1, 4001)
        tried = np.concatenate([dense, -dense]) if is_signed else dense
        least = np.min([loss(full * m) for m in tried], 0)
        assert (loss(np.asarray(found.scale, np.float64)[0]) <= least * 1.03).all()


@pytest.mark.parametrize(
    ("group", "absmax", "full", "best"), [(32, 0.00938, 0.00738, 0.00660), (128, 0.01378, 0.01067, 0.00934)]
)
def test_signed_scales_of_normal_weights(group, absmax, full, best):
    """int4 over N(0, 1): a scale of 1/7 of the largest magnitude, of -1/8 of the largest entry, and searched."""
    rng = np.random.default_rng(8)
    w = normal(rng, group, 8000)
    base = Grid(jnp.ones((1, 8000)), None, jnp.zeros(group, jnp.int32), Integer(4))
    place = jnp.argmax(jnp.abs(w), axis=0)
    entry = jnp.take_along_axis(w, place[None], axis=0)
    grids = {
        absmax: Grid(jnp.abs(entry) / 7.0, None, base.group, base.format),
        full: Grid(-entry / 8.0, None, base.group, base.format),
        best: searched(w, jnp.ones(group), base, steps=48, smallest=0.6, is_signed=True),
    }
    for law, grid in grids.items():
        assert loss64(w, grid.nearest(w), np.eye(group)) / loss64(w, w * 0, np.eye(group)) == pytest.approx(
            law, rel=0.012
        )


def test_optimal_clip_is_the_minimum_over_all_clips():
    rng = np.random.default_rng(9)
    for seed, bits in ((0, 2), (1, 3), (2, 4), (3, 8)):
        a = np.abs(np.random.default_rng(seed).standard_t(2.5, size=60))
        v = rng.uniform(0.0, 2.0, 60)
        found = float(optimal_clip(jnp.asarray(a, jnp.float32), jnp.asarray(v, jnp.float32), bits))
        clips = np.append(np.linspace(1e-3, a.max(), 20001), found)
        steps = 2.0 ** (bits - 1) - 1
        loss = clips**2 * v.sum() / (12 * steps**2) + (np.maximum(a[None] - clips[:, None], 0) ** 2 @ v)
        assert loss[-1] <= loss[:-1].min() * (1 + 1e-5)


def test_target_makes_the_difference_a_constant():
    """``|Q Xq - W X|^2 - |(Q - W*) Xq|^2`` does not depend on ``Q``, so every solver inherits the target."""
    rng = np.random.default_rng(10)
    x = rng.normal(size=(400, 24)) @ rng.normal(size=(24, 24)) * 0.3
    rounded = x + rng.normal(size=x.shape) * 0.2
    moment, cross = rounded.T @ rounded / 400, rounded.T @ x / 400
    w = normal(rng, 24, 7)
    best = np.asarray(
        target(w, jnp.asarray(moment, jnp.float32), jnp.asarray(cross, jnp.float32), damping=0.0), np.float64
    )
    w64 = np.asarray(w, np.float64)
    np.testing.assert_allclose(best, np.linalg.lstsq(rounded, x @ w64, rcond=None)[0], rtol=2e-3, atol=2e-3)
    gaps = []
    for _ in range(4):
        q = rng.normal(size=w64.shape)
        gaps.append((np.square(rounded @ q - x @ w64).sum() - np.square(rounded @ (q - best)).sum()) / 400)
    assert np.ptp(gaps) < 1e-3 * abs(np.mean(gaps))
    np.testing.assert_array_equal(
        target(w, jnp.asarray(moment, jnp.float32), jnp.asarray(cross, jnp.float32), alpha=0.0), w
    )
    same = jnp.asarray(moment, jnp.float32)
    np.testing.assert_allclose(target(w, same, same), w, atol=1e-6)


def test_any_format_and_affine_grids_are_rounded():
    rng = np.random.default_rng(11)
    inputs = rng.normal(size=(300, 70)) @ rng.normal(size=(70, 70)) * 0.2
    h, w = jnp.asarray(inputs.T @ inputs / 300, jnp.float32), normal(rng, 70, 9)
    known = factor(h)
    groups = jnp.arange(70, dtype=jnp.int32) // 32  # the last group is short
    scale = jnp.asarray(rng.uniform(0.3, 0.5, (3, 9)), jnp.float32)
    grids = [
        Grid(scale, jnp.round(normal(rng, 3, 9)) + 8.0, groups, Integer(4, signed=False)),
        Grid(-scale, None, groups, Integer(4)),
        Grid(scale * 8.0, None, groups, NF4),
    ]
    for grid in grids:
        levels = np.asarray(gptq(w, known, grid))
        values = np.asarray(grid.values(jnp.asarray(levels)), np.float64)
        numbers = grid.format
        allowed = np.asarray(
            numbers.decode(
                jnp.arange(2**numbers.bits, dtype=jnp.uint8).astype(jnp.int8 if numbers.is_signed else jnp.uint8)
            )
        )
        zero = 0.0 if grid.zero is None else np.asarray(grid.zero)[np.asarray(groups)]
        if numbers.is_integer:
            assert (levels == np.round(levels)).all()
            assert (levels >= numbers.low).all()
            assert (levels <= numbers.high).all()
        else:
            assert np.isin(levels, allowed).all()
        np.testing.assert_allclose(values, (levels - zero) * np.asarray(grid.scale)[np.asarray(groups)], rtol=1e-6)
        assert loss64(w, values, h) < 0.9 * loss64(w, grid.nearest(w), h)


def test_what_cannot_be_solved_is_said():
    with pytest.raises(ValueError, match="block/w: the second moment of its inputs holds NaN"):
        factor(jnp.full((4, 4), jnp.nan), name="block/w")
    with pytest.raises(ValueError, match="zero in every batch"):
        factor(jnp.zeros((4, 4)))
    with pytest.raises(ValueError, match="not positive definite with a damping of 0"):
        factor(jnp.asarray([[1.0, 2.0], [2.0, 1.0]]), damping=0.0)
    with pytest.raises(ValueError, match="order must be one of natural, diagonal, reversed"):
        factor(jnp.eye(2), order="activation")
    with pytest.raises(ValueError, match="has other levels"):
        adaround(jnp.ones((2, 2)), jnp.eye(2), Grid(jnp.ones((1, 2)), None, jnp.zeros(2, jnp.int32), NF4))
    with pytest.raises(ValueError, match="affine"):
        searched(
            jnp.ones((2, 1)),
            jnp.ones(2),
            Grid(jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.zeros(2, jnp.int32), Integer(4)),
        )


def test_dead_inputs_are_rounded_to_nearest_and_change_nothing():
    rng = np.random.default_rng(12)
    inputs = rng.normal(size=(100, 20))
    inputs[:, 7] = 0.0
    h, w, grid = jnp.asarray(inputs.T @ inputs / 100, jnp.float32), normal(rng, 20, 5), uniform(20, 5, 0.4, 4)
    levels = gptq(w, factor(h), grid)
    np.testing.assert_array_equal(levels[7], grid.levels(w)[7])
    rest = np.delete(np.arange(20), 7)
    smaller = gptq(w[rest], factor(h[rest][:, rest]), uniform(19, 5, 0.4, 4))
    np.testing.assert_array_equal(np.delete(np.asarray(levels), 7, 0), smaller)


def test_layers_alike_compile_once():
    rng = np.random.default_rng(13)
    grid = uniform(40, 8, 0.4, 4)
    first = gptq(normal(rng, 40, 8), factor(jnp.eye(40)), grid)
    before = _gptq._cache_size()
    gptq(normal(rng, 40, 8), factor(jnp.eye(40) * 2.0), grid)
    assert _gptq._cache_size() == before
    assert first.shape == (40, 8)
