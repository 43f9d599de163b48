"""A neuron's parameters together: its row of the weight, its bias, and its entries of the normalisation that follows."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .cuts import Block, along, entries

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # _NormBase: batch and instance norms


def neuron(model: nn.Module, owners: dict[str, nn.Module], parameters: dict[str, nn.Parameter], name: str) -> Block:
    """The parts of the neurons of one weight; the normalisation comes right after its layer in an nn.Sequential."""
    if parameters[name].ndim < 2:
        raise ValueError(
            f'groups="neuron" takes weights, got {name!r} of shape {tuple(parameters[name].shape)}; use "bias"'
        )
    weight = along("output", name, parameters[name], owners[name])
    path, _, leaf = name.rpartition(".")
    bias = leaf.removesuffix("weight") + "bias"
    others = [f"{path}.{bias}" if path else bias]
    following = _following_norm(model, path)
    if following is not None:
        others += [f"{following}.weight", f"{following}.bias"]
    n_neurons = weight.rows(weight.cut(parameters[name])).shape[0]
    fitting = [n for n in others if n in parameters and parameters[n].shape == (n_neurons,)]
    return (weight, *map(entries, fitting))


def _following_norm(model: nn.Module, path: str) -> str | None:
    """The path of a normalisation layer that comes right after `path` in its nn.Sequential."""
    parent, _, leaf = path.rpartition(".")
    holder = model.get_submodule(parent)
    if not isinstance(holder, nn.Sequential) or not leaf:
        return None
    children = list(holder._modules.items())  # named_children() leaves out a module's second place
    place = [child for child, _ in children].index(leaf)
    if place + 1 < len(children) and isinstance(children[place + 1][1], NORMS):
        return f"{parent}.{children[place + 1][0]}" if parent else children[place + 1][0]
    return None
