"""The Hopper kernel (Mosaic GPU): the narrow weight is the left operand of wgmma, converted in registers.

    out^T (N, M) = W (N, K) @ x^T (K, M)      weight rows fill wgmma's 64 rows, the batch is its 8 to 256 columns

    grid (n, m, k): a block of `out` channels, a block of `rows`, one of `split` parts of K
    every step      TMA brings tiles of W (out, length), x (rows, length) and the scales of the tile's groups
                    W -> registers -> x's dtype -> wgmma with x from shared memory, one product per group
                    total += float32(product) * scale, groups ascending
    per channel     products add up in wgmma's own accumulator, scaled once

Every product is exact: codes of 4 bits fit bfloat16, float16 and e4m3, codes of 8 bits fit bfloat16 and float16. Int8
activations are summed in int32. A total starts at -0.0, the identity of float addition. This module alone
calls Mosaic GPU; it needs jax 0.11, so `gpu.py` imports it where it runs a kernel.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh
from jaxtyping import Array

from lowbit_kernels.numerics import rounded_product

# What the interpreter imitates. `num_cores` does not change a result.
HOPPER = {"device_kind": "NVIDIA H100 80GB HBM3", "num_cores": 132, "platform": "gpu"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiles:
    """How one matmul is cut; every number divides the array it cuts.

    Attributes:
        out: channels in a block, a multiple of 64.
        rows: rows of x in a block, a multiple of 8, at most 256.
        length: codes along K in a step: whole groups, 64 at least.
        group: codes that share a product, at most `length`; per channel it is `length`.
        stages: steps in flight.
        split: parts of K summed apart.
        via_smem: converted weights go through shared memory instead of staying in registers.
    """

    out: int
    rows: int
    length: int
    group: int
    stages: int
    split: int
    via_smem: bool


def abstract_hopper() -> AbstractMesh:
    """A mesh without devices: what a kernel is traced for where there is no GPU."""
    return AbstractMesh((), (), abstract_device=AbstractDevice(**HOPPER))


def interpreted(x: Array, weight: Array, scales: Array | None, tiles: Tiles, offsets: Array | None = None) -> Array:
    """`matmul` in the GPU interpreter, which raises on a data race and on a read of memory nobody wrote."""
    # jax 0.10, which types are checked with, does not have this name.
    params = plgpu.InterpretGPUParams(detect_races=True)  # pyright: ignore[reportAttributeAccessIssue]
    with use_abstract_mesh(abstract_hopper()):
        return matmul(x, weight, scales, tiles, offsets, interpret=params)


def matmul(
    x: Array,
    weight: Array,
    scales: Array | None,
    tiles: Tiles,
    offsets: Array | None = None,
    interpret: Any = None,
) -> Array:
    """Partial sums `(split, N, M)` float32 of `W @ x^T`, scaled by groups.

    Args:
        x: `(M, K)` bfloat16, float16, int8 or float8_e4m3fn.
        weight: `(N, K)` int4 or int8, K-minor.
        scales: `(G, N)` float32; per channel is G = 1. None for the int32 sums themselves, of one group.
        tiles: how to cut.
        offsets: int32 `(G, N)`, taken from the integer sums of every row before they are scaled, or None.
        interpret: parameters of the GPU interpreter, or None.
    """
    rows, length = x.shape
    out, groups = weight.shape[0], 1 if scales is None else scales.shape[0]
    t, is_integer = tiles, x.dtype == jnp.int8
    sums_dtype = jnp.int32 if is_integer else jnp.float32
    steps = length // t.length // t.split
    is_direct = weight.dtype == x.dtype  # nothing to convert: wgmma reads both operands from shared memory
    tables = [table for table in (scales, offsets) if table is not None]
    out_dtype = jnp.int32 if scales is None else jnp.float32
    x_tiling = _tiling(t.group, x.dtype)
    w_tiling = x_tiling if is_direct else _tiling(t.length, weight.dtype)

    def body(x_gmem, weight_gmem, *rest):
        tables_gmem, (out_gmem, out_smem, *converted) = rest[: len(tables)], rest[len(tables) :]
        n, m, k = lax.axis_index("n"), lax.axis_index("m"), lax.axis_index("k")

        def multiply(sums, x_smem, weight_smem, first: int) -> None:
            span = pl.ds(first, t.group)
            if is_direct:
                left = weight_smem.at[:, span]
            else:  # the tile is sliced in registers: a slice in shared memory would have to be whole swizzle tiles
                left = weight_smem[...][:, first : first + t.group].astype(x.dtype)
            if converted:
                converted[0][...] = left
                plgpu.commit_smem()
                left = converted[0]
            plgpu.wgmma(sums, left, x_smem.at[:, span].T)
            plgpu.wgmma_wait(0)

        def scaled(sums: Array, *columns_of_tables: Array) -> Array:
            if offsets is not None:
                sums = sums - lax.broadcast_in_dim(columns_of_tables[-1], (t.out, t.rows), (0,))
            if scales is None:
                return sums
            scale = columns_of_tables[0]
            columns = lax.broadcast_in_dim(scale, (t.out, t.rows), (0,))
            product = sums.astype(jnp.float32) * columns
            # Without the clamp ptxas gets one fma for this product and the sum that follows, which rounds once.
            return rounded_product(sums.astype(jnp.float32), columns) if is_integer else product

        def step(_, x_smem, weight_smem, *rest):
            *tables_smem, total = rest
            for group in range(t.length // t.group):

                def product(sums, first=group * t.group):
                    multiply(sums, x_smem, weight_smem, first)
                    return sums[...]

                sums = pl.run_scoped(product, plgpu.WGMMAAccumulatorRef((t.out, t.rows), sums_dtype))
                total = total + scaled(sums, *[_columns(table.at[group]) for table in tables_smem])
            return total

        in_specs = [
            plgpu.BlockSpec((t.rows, t.length), lambda i: (m, k * steps + i), transforms=x_tiling),
            plgpu.BlockSpec((t.out, t.length), lambda i: (n, k * steps + i), transforms=w_tiling),
        ]
        if groups > 1:
            table = plgpu.BlockSpec((t.length // t.group, t.out), lambda i: (k * steps + i, n))
            in_specs += [table] * len(tables)
            start = plgpu.layout_cast(jnp.full((t.out, t.rows), -0.0, jnp.float32), plgpu.Layout.WGMMA)
            total = plgpu.emit_pipeline(
                step, grid=(steps,), in_specs=in_specs, max_concurrent_steps=t.stages, init_carry=start
            )(x_gmem, weight_gmem, *tables_gmem)
        else:

            def whole(sums):
                plgpu.emit_pipeline(
                    lambda _, x_smem, weight_smem: multiply(sums, x_smem, weight_smem, 0),
                    grid=(steps,),
                    in_specs=in_specs,
                    max_concurrent_steps=t.stages,
                )(x_gmem, weight_gmem)
                return sums[...]

            sums = pl.run_scoped(whole, plgpu.WGMMAAccumulatorRef((t.out, t.rows), sums_dtype))
            channels = pl.ds(n * t.out, t.out)
            total = scaled(sums, *[_columns(table.at[0, channels]) for table in tables_gmem])
        out_smem[...] = total
        plgpu.commit_smem()
        block = out_gmem.at[k, pl.ds(n * t.out, t.out), pl.ds(m * t.rows, t.rows)]
        plgpu.copy_smem_to_gmem(out_smem, block)
        plgpu.wait_smem_to_gmem(0)

    scratch = [plgpu.SMEM((t.out, t.rows), out_dtype, transforms=_tiling(t.rows, out_dtype))]
    if t.via_smem and not is_direct:
        scratch.append(plgpu.SMEM((t.out, t.group), x.dtype, transforms=x_tiling))
    return plgpu.kernel(
        body,
        out_type=jax.ShapeDtypeStruct((t.split, out, rows), out_dtype),
        grid=(out // t.out, rows // t.rows, t.split),
        grid_names=("n", "m", "k"),
        scratch_types=scratch,
        interpret=interpret,
    )(x, weight, *tables)


def _columns(scales: Any) -> Array:
    """A number for each of the block's channels, laid out as the rows of a wgmma accumulator."""
    layout = plgpu.Layout.WGMMA.reduce(1)
    return plgpu.load(scales, layout=layout)  # pyright: ignore[reportCallIssue] (jax 0.10 wants an index)


def _tiling(width: int, dtype: jax.typing.DTypeLike) -> tuple[plgpu.TilingTransform, plgpu.SwizzleTransform]:
    """The widest swizzle, 32 to 128 bytes, for rows of `width` elements of shared memory."""
    bits = jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).bits
    swizzle = plgpu.find_swizzle(width * bits)
    return plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle)
