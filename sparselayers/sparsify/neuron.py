"""A neuron's parameters together: its row of the weight, its bias, and its entries of the normalisation that follows."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .cuts import Block, along, entries

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # _NormBase: batch and instance norms


@dataclass(frozen=True)
class Neurons:
    r"""groups="neuron", with the normalisations that a model's code applies where no nn.Sequential says so.

    A group is an output row of a weight, its bias, and its entries of the normalisation behind it. In a forward such as
    `self.bn1(self.conv1(x))` only the names tell which normalisation that is.

    Args:
        norms: pairs of names below one and the same module, the layer and its normalisation, such as
            (("conv1", "bn1"), ("conv2", "bn2")). They hold wherever a module has both.

    Raises: TypeError for what is no tuple of pairs; in Regularizer, ValueError for a pair that no module has.

    Source: Liu, Li, Shen, Huang, Yan and Zhang 2017 (the scale of a normalisation decides over its channel).

    When not to use: for an nn.Sequential: groups="neuron" sees what follows there.

    >>> import torch, sparselayers as sl
    >>> block = torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(3, 8, 3), "bn1": torch.nn.BatchNorm2d(8)})
    >>> sl.Regularizer(block, sl.GroupL2(), lam=1.0, groups=sl.Neurons((("conv1", "bn1"),))).names
    ['conv1.weight', 'conv1.bias', 'bn1.weight', 'bn1.bias']
    """

    norms: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        pairs = self.norms if isinstance(self.norms, tuple) else ()
        if not pairs or not all(
            isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(name, str) for name in pair) for pair in pairs
        ):
            raise TypeError(f'norms must be a tuple of pairs such as (("conv1", "bn1"),), got {self.norms!r}')

    def check(self, model: nn.Module) -> None:
        """ValueError for a pair of which no module of the model has both."""
        for layer, norm in self.norms:
            if not any(_below(module, layer) and _norm_below(module, norm) for module in model.modules()):
                raise ValueError(
                    f"no module has both a layer {layer!r} and a normalisation {norm!r} below it; give the names that they "
                    "have within the module whose forward calls them"
                )


def neuron(
    model: nn.Module,
    owners: dict[str, nn.Module],
    parameters: dict[str, nn.Parameter],
    name: str,
    norms: tuple[tuple[str, str], ...] = (),
) -> Block:
    """The parts of the neurons of one weight; the normalisation is named in `norms`, or is next in an nn.Sequential."""
    if parameters[name].ndim < 2:
        raise ValueError(
            f'groups="neuron" takes weights, got {name!r} of shape {tuple(parameters[name].shape)}; use "bias"'
        )
    weight = along("output", name, parameters[name], owners[name])
    path, _, leaf = name.rpartition(".")
    bias = leaf.removesuffix("weight") + "bias"
    others = [f"{path}.{bias}" if path else bias]
    following = _named_norm(model, path, norms) or _following_norm(model, path)
    if following is not None:
        others += [f"{following}.weight", f"{following}.bias"]
    n_neurons = weight.rows(weight.cut(parameters[name])).shape[0]
    fitting = [n for n in others if n in parameters and parameters[n].shape == (n_neurons,)]
    return (weight, *map(entries, fitting))


def _named_norm(model: nn.Module, path: str, norms: tuple[tuple[str, str], ...]) -> str | None:
    """The path of the normalisation that a pair of `norms` names for the layer at `path`."""
    for layer, norm in norms:
        if path != layer and not path.endswith(f".{layer}"):
            continue
        holder = path.removesuffix(layer)
        if _norm_below(model.get_submodule(holder.removesuffix(".")), norm):
            return holder + norm
    return None


def _below(module: nn.Module, path: str) -> nn.Module | None:
    for step in path.split("."):
        module = module._modules.get(step)  # type: ignore[assignment]
        if module is None:
            return None
    return module


def _norm_below(module: nn.Module, path: str) -> bool:
    return isinstance(_below(module, path), NORMS)


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
