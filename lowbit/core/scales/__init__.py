"""How a scale is stored: rounding it to its storage is part of the grid, in training too. One storage, or family, per file."""

from .bounds import check_positive as check_positive
from .bounds import largest_scale as largest_scale
from .bounds import scale_of_zeros as scale_of_zeros
from .bounds import signed_step as signed_step
from .bounds import smallest_scale as smallest_scale
from .bounds import stored_scale as stored_scale
