"""Values of tokens `[B, T]` under a mask, and checks of shapes, for losses and choices of tokens."""

from __future__ import annotations

from torch import Tensor

from entropyfloor.torch.numerics import as_float


def token_advantages(advantages: Tensor, like: Tensor, mask: Tensor) -> Tensor:
    """Advantages of tokens, without gradient; 0 outside the mask."""
    if advantages.shape not in (like.shape, like.shape[:1]):
        raise ValueError(
            f"advantages {tuple(advantages.shape)} must be {tuple(like.shape[:1])}, one a response, or "
            f"{tuple(like.shape)}, one a token"
        )
    per_token = advantages if advantages.ndim == 2 else advantages[:, None].expand_as(like)
    return masked(per_token.detach(), mask.bool(), "advantages").to(like.dtype)


def masked(x: Tensor, mask: Tensor, name: str) -> Tensor:
    """`x` with 0 outside the mask, where its gradient is 0 too."""
    return as_float(x, name).masked_fill(~mask, 0.0)


def as_mask(mask: Tensor, like: Tensor, name: str = "mask") -> Tensor:
    """A mask of tokens as booleans.

    Raises:
        ValueError: Its shape is not that of what it masks, or that is not `[B, T]`.
    """
    if like.ndim != 2:
        raise ValueError(f"log-probs and entropies {tuple(like.shape)} must be [responses, tokens]")
    check_same_shape(mask, like, name, "what it masks")
    return mask.bool()


def check_same_shape(x: Tensor, like: Tensor, name: str, other: str) -> None:
    """Refuse shapes that differ."""
    if x.shape != like.shape:
        raise ValueError(f"{name} {tuple(x.shape)} and {other} {tuple(like.shape)} must have the same shape")
