"""Finding the blocks of an earlier text that a layer's queries attend to."""

from hsokv_ray.longcontext.index.base import BlockIndex
from hsokv_ray.longcontext.index.making import make_index, restore_index
from hsokv_ray.longcontext.index.selecting import select_blocks

__all__ = ["BlockIndex", "make_index", "restore_index", "select_blocks"]
