"""The shapes that tests and benchmarks share: real layers, and small ones with every kind of tail."""

from typing import NamedTuple


class MatmulShape(NamedTuple):
    """`(M, K) @ (K, N)` with scales shared by `group` codes along K."""

    rows: int
    length: int
    out: int
    group: int


class ConvShape(NamedTuple):
    """A NHWC convolution: batch, height, width, channels in and out, kernel size, stride."""

    batch: int
    height: int
    width: int
    channels: int
    out: int
    kernel: int
    stride: int
    groups: int


# Tests: rows around the tile sizes 1, 4, 8, 16, 32; channels around 16; K with short groups and part blocks.
SMALL = (
    MatmulShape(1, 64, 16, 32),
    MatmulShape(3, 37, 5, 37),
    MatmulShape(9, 50, 33, 12),
    MatmulShape(16, 128, 48, 64),
    MatmulShape(37, 200, 70, 72),
)

# Benchmarks: decode and prefill of one 4096-wide layer, the common yardstick, and feed-forward layers of real models.
LAYERS = tuple(MatmulShape(rows, 4096, 4096, 32) for rows in (1, 8, 32, 128, 512))
FEED_FORWARD = (MatmulShape(1, 1024, 4096, 32), MatmulShape(1, 4096, 11008, 32), MatmulShape(1, 11008, 4096, 32))

SMALL_CONVS = (
    ConvShape(2, 7, 6, 5, 7, 3, 1, 1),
    ConvShape(1, 8, 9, 16, 33, 3, 2, 1),
    ConvShape(1, 5, 5, 12, 20, 1, 1, 1),
    ConvShape(1, 9, 8, 19, 19, 3, 1, 19),
    ConvShape(2, 8, 8, 8, 12, 3, 1, 2),
)
CONVS = (
    ConvShape(1, 56, 56, 64, 64, 3, 1, 1),
    ConvShape(1, 56, 56, 64, 64, 3, 1, 64),
    ConvShape(1, 14, 14, 256, 256, 1, 1, 1),
    ConvShape(1, 56, 56, 64, 64, 3, 2, 1),
)
