"""Empty rows for the layers of a decoder-only model."""

from typing import Any

from hsokv_ray.longcontext.config import LongContextConfig, Resolved
from hsokv_ray.longcontext.families import DecoderShape
from hsokv_ray.longcontext.far import FarSegment, IndexKind
from hsokv_ray.longcontext.growable import KVSpan
from hsokv_ray.longcontext.placement import Placement, place_layers
from hsokv_ray.longcontext.rope import Rope
from hsokv_ray.longcontext.row import Row


class RowMaker:
    """Makes the rows of one model with one configuration."""

    def __init__(self, model: Any, shape: DecoderShape, config: LongContextConfig) -> None:
        self.shape = shape
        self.settings: Resolved = config.resolve(window=shape.window, num_layers=shape.num_layers)
        self.placements: list[Placement] = place_layers(model.base_model.layers, model.dtype, config)
        self._ropes = {place.device: Rope(shape.inv_freq.to(place.device)) for place in self.placements}

    def rope(self, layer: int) -> Rope:
        """Return the rotations on the device of layer number `layer`."""
        return self._ropes[self.placements[layer].device]

    def rows(self) -> list[Row]:
        """Return one empty row per layer."""
        return [self.row(layer) for layer in range(self.shape.num_layers)]

    def row(self, layer: int) -> Row:
        """Return an empty row of layer number `layer`."""
        place, heads, head_dim = self.placements[layer], self.shape.num_key_value_heads, self.shape.head_dim
        return Row(
            settings=self.settings,
            rope=self.rope(layer),
            sinks=KVSpan.empty(heads, head_dim, place.dtype, place.device),
            local=KVSpan.empty(heads, head_dim, place.dtype, place.device),
            far=[self._far(place)] if self.settings.retrieves(layer) else [],
        )

    def _far(self, place: Placement) -> FarSegment:
        heads, head_dim = self.shape.num_key_value_heads, self.shape.head_dim
        kind = IndexKind(
            name=self.settings.index,
            num_heads=heads,
            head_dim=head_dim,
            block_size=self.settings.block,
            device=place.store_device,
            gpu=place.index_gpu,
        )
        span = KVSpan.empty(heads, head_dim, place.store_dtype, place.store_device, block=self.settings.block)
        return FarSegment(span, kind.make(), kind)
