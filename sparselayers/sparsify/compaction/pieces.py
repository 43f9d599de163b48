"""Parameters that share channels: which channels they touch, and the same channels cut from all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from .trial import Edits


class Piece(NamedTuple):
    """A parameter or buffer whose `axis` runs over the channels of `parts`, one part after the other."""

    module: nn.Module
    name: str
    axis: int
    parts: tuple[str, ...]

    @property
    def tensor(self) -> Tensor:
        return getattr(self.module, self.name)


# Attributes that repeat the sizes of a weight, by axis: of nn.Linear, and of transformers' Conv1D (inputs, outputs).
SIZES = {"linear": ("out_features", "in_features"), "conv1d": ("nx", "nf")}


def dense_kind(module: nn.Module) -> str | None:
    """The kind of a layer whose weight is all there is to it: no hooks, no parametrization, no subclass of unknown ways."""
    if parametrize.is_parametrized(module) or module._forward_hooks or module._forward_pre_hooks:
        return None
    if type(module) in (nn.Linear, NonDynamicallyQuantizableLinear):
        return "linear"
    is_conv1d = type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")
    return "conv1d" if is_conv1d else None


def outputs(layer: nn.Module, *parts: str) -> list[Piece]:
    """A dense layer's outputs: its weight, then its bias."""
    found = [Piece(layer, "weight", int(dense_kind(layer) == "conv1d"), parts)]
    if layer.bias is not None:
        found.append(Piece(layer, "bias", 0, parts))
    return found


def inputs(layer: nn.Module, *parts: str) -> list[Piece]:
    """A dense layer's inputs: its weight."""
    return [Piece(layer, "weight", int(dense_kind(layer) == "linear"), parts)]


def fit(pieces: Sequence[Piece], sizes: Mapping[str, int]) -> bool:
    """Are the parameters as long as the parts that they are said to hold?"""
    return all(
        piece.tensor.ndim > piece.axis and piece.tensor.shape[piece.axis] == sum(sizes[part] for part in piece.parts)
        for piece in pieces
    )


def touched(pieces: Sequence[Piece], part: str, sizes: Mapping[str, int]) -> Tensor:
    """(sizes[part],): True for each channel of the part at which any of the parameters is not zero."""
    found = []
    for piece in pieces:
        start = 0
        for other in piece.parts:
            if other == part:
                rows = piece.tensor.detach().narrow(piece.axis, start, sizes[other]).movedim(piece.axis, 0)
                found.append((rows != 0).flatten(1).any(1) if rows.ndim > 1 else rows != 0)
            start += sizes[other]
    return torch.stack(found).any(0)


def cut(pieces: Sequence[Piece], kept: Mapping[str, Tensor], sizes: Mapping[str, int], edits: Edits) -> None:
    """Keep these channels of each part, in every parameter; layers learn their new sizes."""
    for piece in pieces:
        index, start = [], 0
        for part in piece.parts:
            index.append(kept[part] + start)
            start += sizes[part]
        old = piece.tensor
        new = old.detach().index_select(piece.axis, torch.cat(index).to(old.device))
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(new, requires_grad=old.requires_grad)
        edits.set(piece.module, piece.name, new)
        kind = dense_kind(piece.module)
        if kind is not None and piece.name == "weight":
            edits.set(piece.module, SIZES[kind][piece.axis], new.shape[piece.axis])
