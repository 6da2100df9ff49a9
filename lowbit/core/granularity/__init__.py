"""Which elements share a scale: one granularity per file, found by its words."""

from .base import Granularity as Granularity
from .channel import Channel as Channel
from .group import Group as Group
from .tensor import Tensor as Tensor
from .tile import Tile as Tile
