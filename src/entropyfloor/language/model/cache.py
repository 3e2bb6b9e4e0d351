"""Keys and values that grow in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import LongTensor, Tensor
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from jaxtyping import Float

SPARE = 64
"""Number of tokens that can be appended to a new buffer before it is full."""


def grow_in_place(cache: Any) -> None:
    """Make each `DynamicLayer` of a cache that has read a prompt a `BufferedLayer`.

    Layers of other kinds, such as sliding windows and linear attention, stay as they are.
    """
    layers = getattr(cache, "layers", [])
    for i, layer in enumerate(layers):
        if type(layer) is DynamicLayer and layer.is_initialized:
            layers[i] = BufferedLayer(layer)


class BufferedLayer(DynamicLayer):
    """Keys and values of a layer with full attention, in buffers that are longer than what they hold.

    A `DynamicLayer` copies all keys and values into new memory for each new token. With hundreds of tokens this
    takes longer than attention.

    Args:
        layer: A layer that has read a prompt, whose keys and values are taken over.
    """

    def __init__(self, layer: DynamicLayer) -> None:
        vars(self).update(vars(layer))
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._written: tuple[Tensor, Tensor] | None = None
        """The keys and values that are parts of the buffers."""

    def update(
        self,
        key_states: Float[Tensor, "B H N D"],
        value_states: Float[Tensor, "B H N E"],
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "B H L D"], Float[Tensor, "B H L E"]]:
        """Append keys and values of new tokens, and return all of them."""
        if not self.is_initialized:  # since it was reset
            return super().update(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        written = self._written  # transformers may have put others in their place: other rows, or fewer tokens
        if written is None or self.keys is not written[0] or self.values is not written[1]:
            self._buffers = None
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < end:
            self._buffers = _longer(self.keys, end + SPARE), _longer(self.values, end + SPARE)
        keys, values = self._buffers
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = self._written = keys[:, :, :end], values[:, :, :end]
        return self._written

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """Continue with these rows. The buffers are freed at once, not at the next update of this layer."""
        super().reorder_cache(beam_idx)
        self._buffers = self._written = None


def _longer(states: Float[Tensor, "B H L D"], length: int) -> Float[Tensor, "B H N D"]:
    """A longer buffer that begins with `states`."""
    rows, heads, used, size = states.shape
    buffer = states.new_empty(rows, heads, length, size)
    buffer[:, :, :used] = states
    return buffer
