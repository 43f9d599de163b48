"""Hidden channels of transformer MLPs that are never read or always the same, removed by the names of their layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .attention import find
from .channels import wide
from .pieces import Piece, cut, fit, inputs, outputs, touched
from .trial import Edits

# Layers into the hidden channels (the last two multiplied, the first through the activation), then the layer out of them.
NAMES = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("wi_0", "wi_1"), "wo"),
    (("w1", "w3"), "w2"),
    (("linear1",), "linear2"),
    (("fc1",), "fc2"),
    (("c_fc",), "c_proj"),
    (("wi",), "wo"),
    (("lin1",), "lin2"),
    (("up_proj",), "down_proj"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("intermediate.dense",), "output.dense"),
)
ACTIVATIONS = ("activation", "activation_fn", "activation_func", "act_fn", "act", "intermediate_act_fn")


class MLP(NamedTuple):
    """down(act(up(x))), or with a gate down(act(gate(x)) up(x)), somewhere in a block whose outside stays."""

    block: nn.Module
    ups: tuple[nn.Module, ...]
    down: nn.Module
    activation: Callable[[Tensor], Tensor] | None

    @property
    def pieces(self) -> list[Piece]:
        return [*(piece for up in self.ups for piece in outputs(up, "hidden")), *inputs(self.down, "hidden")]

    @property
    def sizes(self) -> dict[str, int]:
        (piece,) = inputs(self.down)
        return {"hidden": piece.tensor.shape[piece.axis]}


def mlps(model: nn.Module) -> Iterator[MLP]:
    """Every MLP of a model that is known by the names of its layers."""
    for module in model.modules():
        for names, last in NAMES:
            ups, down = [find(module, name) for name in names], find(module, last)
            if down is None or any(up is None for up in ups):
                continue
            holder = module.get_submodule(names[0].rpartition(".")[0])
            activation = next((a for name in ACTIVATIONS if callable(a := getattr(holder, name, None))), None)
            mlp = MLP(module, cast(tuple[nn.Module, ...], tuple(ups)), down, activation)
            if fit(mlp.pieces, mlp.sizes):
                yield mlp
            break


def kept_channels(mlp: MLP) -> tuple[Tensor, Tensor] | None:
    """(channels that stay, the constant of each channel, 0 where it has none to pass on); None where all stay.

    A channel is removed where nobody reads it (its column of `down` is 0), or where it is the same for every input and its
    share can go into the bias of `down`, or is 0. One channel stays.
    """
    weight = [touched(outputs(up, "hidden")[:1], "hidden", mlp.sizes) for up in mlp.ups]
    fixed = [_bias(up, mlp.sizes["hidden"]) for up in mlp.ups]
    value = _activated(mlp.activation, fixed[0])
    constant = ~weight[0] & value.isfinite()
    if len(mlp.ups) == 2:
        # 0 times anything is 0; else both factors have to be constants.
        nothing = (constant & (value == 0)) | (~weight[1] & (fixed[1] == 0))
        value = torch.where(nothing, 0.0, value * fixed[1])
        constant = nothing | (constant & ~weight[1] & value.isfinite())
    unread = ~touched(inputs(mlp.down, "hidden"), "hidden", mlp.sizes)
    foldable = constant & ((value == 0) | (mlp.down.bias is not None))
    stays = ~(unread | foldable)
    if not stays.any():
        stays[0] = True
    if stays.all():
        return None
    return stays.nonzero().flatten(), torch.where(stays | unread, 0.0, value)


def remove_channels(mlp: MLP, kept: tuple[Tensor, Tensor], edits: Edits) -> None:
    """Keep these hidden channels; what the others always add goes into the bias of the layer out of them."""
    stays, value = kept
    if value.any():
        (piece,) = inputs(mlp.down)
        weight = wide(piece.tensor.detach().movedim(piece.axis, 1))
        bias = cast(nn.Parameter, mlp.down.bias)
        new = (wide(bias.detach()) + weight @ wide(value)).to(bias.dtype)
        edits.set(mlp.down, "bias", nn.Parameter(new, requires_grad=bias.requires_grad))
    cut(mlp.pieces, {"hidden": stays}, mlp.sizes, edits)


def _activated(activation: Callable[[Tensor], Tensor] | None, x: Tensor) -> Tensor:
    """What the activation makes of each entry; NaN where it is none that can be asked alone."""
    try:
        value = activation(x.clone()) if activation is not None else None  # it may work in place
    except Exception:  # whatever goes by that name is none
        value = None
    fits = isinstance(value, Tensor) and value.shape == x.shape and value.dtype == x.dtype
    return cast(Tensor, value) if fits else torch.full_like(x, torch.nan)


def _bias(layer: nn.Module, n: int) -> Tensor:
    weight, bias = cast(Tensor, layer.weight), cast(Tensor | None, layer.bias)
    return weight.new_zeros(n) if bias is None else bias.detach()
