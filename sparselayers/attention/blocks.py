"""How attention is cut into blocks of queries, and the part of its masks that a block sees."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import masks


class Block(NamedTuple):
    """Some queries of some heads, and the keys before `keys`, which are all that they may see."""

    number: int
    heads: slice
    rows: slice
    keys: slice


def cut(heads: int, length: int, n_keys: int, is_causal: bool, room: int) -> list[Block]:
    """Blocks of at most `room` weights: whole heads together where they are small, pieces of one head where it is large."""
    together = max(1, room // max(1, length * n_keys))
    rows = length if together > 1 else max(1, min(length, room // max(1, n_keys)))
    found: list[Block] = []
    for head in range(0, heads, together):
        for row in range(0, length, rows):
            last = min(row + rows, length)
            keys = min(last, n_keys) if is_causal else n_keys
            found.append(Block(len(found), slice(head, head + together), slice(row, last), slice(0, keys)))
    return found


def part(attn_mask: Tensor, block: Block, leading: tuple[int, ...]) -> Tensor:
    """The block's part of a mask that broadcasts to (*leading, L, S): (heads or 1, rows or 1, keys or 1)."""
    while attn_mask.ndim < len(leading) + 2:
        attn_mask = attn_mask.unsqueeze(0)
    if attn_mask.shape[-2] > 1:
        attn_mask = attn_mask[..., block.rows, :]
    if attn_mask.shape[-1] > 1:
        attn_mask = attn_mask[..., block.keys]
    if all(size == 1 for size in attn_mask.shape[:-2]):
        return attn_mask.reshape(1, *attn_mask.shape[-2:])
    heads = torch.arange(block.heads.start, min(block.heads.stop, math.prod(leading)), device=attn_mask.device)
    places = torch.unravel_index(heads, leading)
    return attn_mask[
        tuple(at if size > 1 else torch.zeros_like(at) for at, size in zip(places, attn_mask.shape, strict=False))
    ]


def allowed(mask: Tensor | None, block: Block, is_causal: bool, device: torch.device) -> Tensor | None:
    """True = may attend, from the block's part of the mask; None where everything is allowed."""
    told = None if mask is None else masks.told(mask)
    if not is_causal:
        return told
    row = torch.arange(block.rows.start, block.rows.stop, device=device)
    causal = torch.arange(block.keys.stop, device=device) <= row.unsqueeze(-1)
    return causal if told is None else told & causal
