"""Block sizes of the TPU kernel: a heuristic keyed on M, from static cycle estimates (`python -m lowbit_kernels.aot tpu`)."""

from typing import NamedTuple

from jaxtyping import Array

VMEM_BUDGET = 40 << 20  # bytes of blocks and scratch: what every chip from v5e on has, with room for the compiler


class Blocks(NamedTuple):
    """Elements of one block of rows, of output channels and of K."""

    m: int
    n: int
    k: int


MANY_ROWS = 128  # from here on bfloat16 weights are scaled before the product


def choose(
    rows: int,
    length: int,
    out: int,
    group: int,
    groups: int,
    *,
    m: int | None = None,
    n: int | None = None,
    k: int | None = None,
) -> Blocks:
    """Blocks for a matmul `(rows, length) @ (length, out)`; `m`, `n`, `k` are taken where given.

    Few rows: large blocks, since each step of the grid costs about as much as its product. Many rows: a step does more
    than it costs, and smaller blocks keep whole rows in VMEM and the unrolled program short.

    >>> choose(1, 4096, 4096, 128, 32)
    Blocks(m=8, n=1024, k=4096)
    >>> choose(512, 4096, 4096, 128, 32)
    Blocks(m=256, n=512, k=2048)
    """
    m = m or (8 if rows <= 8 else min(round_up(rows, 16), 256))
    few = m < MANY_ROWS
    n = n or min(round_up(out, 128), 1024 if few else 512)
    return Blocks(m, n, block_k(length, group, groups, k or (4096 if few or groups == 1 else 2048)))


def is_native(group: int, groups: int) -> bool:
    """The kernel reads such groups where they lie: one for all of K, or one that divides 128 or is a multiple of it."""
    return groups == 1 or group % 128 == 0 or (group >= 8 and 128 % group == 0)


def padded_group(group: int) -> int:
    """The next group length that is native.

    >>> [padded_group(g) for g in (3, 12, 96, 200)]
    [8, 16, 128, 256]
    """
    return max(8, 1 << (group - 1).bit_length()) if group < 128 else round_up(group, 128)


def rows_fit(blocks: Blocks, x: Array) -> bool:
    """Whole rows of float `x`, held twice, leave room for the rest: then their codes can be made in the kernel."""
    return 2 * blocks.m * x.shape[1] * max(x.dtype.itemsize, 2) <= VMEM_BUDGET // 2


def block_k(length: int, group: int, groups: int, most: int) -> int:
    """The largest block of K, at most about `most`, that holds whole groups or that a group holds whole times."""
    if groups == 1:
        whole = round_up(length, 128)
        return whole if whole <= most else _even(whole, 128, most)
    if group > most:
        return max(k for k in range(128, most + 1, 128) if group % k == 0)
    unit = max(group, min(256, round_up(length, 128)))
    return _even(round_up(groups * group, unit), unit, most)


def _even(length: int, unit: int, most: int) -> int:
    """`length` in the fewest equal blocks of at most `most`, rounded up to `unit`."""
    steps = -(-length // most)
    return round_up(-(-length // steps), unit)


def round_up(value: int, multiple: int) -> int:
    """The next multiple.

    >>> round_up(5, 4)
    8
    """
    return -(-value // multiple) * multiple
