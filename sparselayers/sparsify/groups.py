"""How a model's weights are cut into groups: which parameters, and each as a view (n_groups, ...), by parameter name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Cut = Callable[[Tensor], Tensor]
Groups = str | Callable[[str, nn.Parameter], Tensor | None]
Include = str | Sequence[str] | Callable[[str, nn.Parameter], bool] | None

NAMES = ("output", "input", "neuron", "filter", "kernel", "element", "bias", "tensor")
NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


class Part(NamedTuple):
    """A parameter by name, and the cut that views it: `lead` axes that count the groups, then those of one group.

    It is always a view, whatever the memory layout: a step on a copy would change nothing.
    """

    name: str
    cut: Cut
    lead: int = 1

    def rows(self, view: Tensor) -> Tensor:
        """The view as a matrix (n_groups, group_size); a copy where its layout has it so."""
        return view.reshape(math.prod(view.shape[: self.lead]), math.prod(view.shape[self.lead :]))


Block = tuple[Part, ...]  # parts whose rows belong together: one part, or a neuron's weight, bias and normalisation


def cut_model(model: nn.Module, groups: Groups, include: Include) -> list[Block]:
    """The blocks of a model, each parameter taken once; ValueError where nothing is caught or a cut does not fit."""
    if isinstance(groups, str) and groups not in NAMES:
        raise ValueError(
            f"groups must be one of {', '.join(NAMES)} or a callable (name, parameter) -> view, got {groups!r}"
        )
    if not isinstance(groups, str) and not callable(groups):
        raise TypeError(f"groups must be a name or a callable (name, parameter) -> view, got {groups!r}")
    owners = _owners(model)
    blocks = list(_cut(model, owners, groups, include))
    if not blocks:
        known = ", ".join(sorted(owners)) or "none"
        raise ValueError(
            f"groups={groups!r} with include={include!r} caught no parameter; the model's parameters are: {known}"
        )
    return blocks


def _cut(model: nn.Module, owners: dict[str, nn.Module], groups: Groups, include: Include) -> Iterator[Block]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    taken: set[int] = set()
    for name in _chosen(parameters, owners, groups, include):
        parameter = parameters[name]
        if id(parameter) in taken:
            continue
        if callable(groups):
            block = _by_callable(groups, name, parameter)
        elif groups == "neuron":
            block = _neuron(model, owners, parameters, name)
        else:
            block = (_named_part(groups, name, parameter, owners[name]),)
        block = tuple(part for part in block if id(parameters[part.name]) not in taken)
        taken.update(id(parameters[part.name]) for part in block)
        if block:
            yield block


def _chosen(
    parameters: dict[str, nn.Parameter], owners: dict[str, nn.Module], groups: Groups, include: Include
) -> Iterator[str]:
    """Names that `include` asks for; by default the weights of Linear and Conv (their biases for groups="bias")."""
    if include is not None:
        patterns = (include,) if isinstance(include, str) else include
        for name, parameter in parameters.items():
            wanted = patterns(name, parameter) if callable(patterns) else any(fnmatchcase(name, p) for p in patterns)
            if wanted:
                yield name
        return
    leaf = "bias" if groups == "bias" else "weight"
    # A weight that an embedding or a norm owns too (a tied head) is left out unless `include` names it.
    elsewhere = {id(p) for n, p in parameters.items() if not isinstance(owners[n], (nn.Linear, _ConvNd))}
    for name, parameter in parameters.items():
        owner = owners[name]
        kind = _ConvNd if groups in ("filter", "kernel") else (nn.Linear, _ConvNd)
        if isinstance(owner, kind) and name.rpartition(".")[2] == leaf and id(parameter) not in elsewhere:
            yield name


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """Parameter name -> the module that holds it."""
    return {
        f"{path}.{leaf}" if path else leaf: module
        for path, module in model.named_modules(remove_duplicate=False)
        for leaf, _ in module.named_parameters(recurse=False, remove_duplicate=False)
    }


def _by_callable(groups: Callable[[str, nn.Parameter], Tensor | None], name: str, parameter: nn.Parameter) -> Block:
    view = groups(name, parameter)
    if view is None:
        return ()
    if not isinstance(view, Tensor) or view.ndim != 2:
        raise ValueError(
            f"groups(name, parameter) must give a view (n_groups, group_size), got {getattr(view, 'shape', view)} for {name!r} "
            f"of shape {tuple(parameter.shape)}"
        )
    if view.untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr():
        raise ValueError(
            f"groups(name, parameter) gave a copy for {name!r} of shape {tuple(parameter.shape)}, and a step on a copy "
            "changes nothing; use view, transpose or unflatten instead of reshape"
        )

    def cut(p: Tensor) -> Tensor:
        return cast(Tensor, groups(name, cast(nn.Parameter, p)))

    return (Part(name, cut),)


def _named_part(groups: str, name: str, parameter: nn.Parameter, owner: nn.Module) -> Part:
    if groups == "tensor":
        return Part(name, lambda p: p.unsqueeze(0))
    if groups == "element":
        return Part(name, lambda p: p.unsqueeze(-1), parameter.ndim)
    if parameter.ndim == 0:
        raise ValueError(f'groups="{groups}" takes vectors and matrices, got the scalar {name!r}; use "element"')
    if groups == "bias" and parameter.ndim > 1:
        raise ValueError(f'groups="bias" takes vectors, got {name!r} of shape {tuple(parameter.shape)}; use "output"')
    if groups in ("filter", "kernel") and parameter.ndim < 3:
        raise ValueError(
            f'groups="{groups}" takes convolution weights, got {name!r} of shape {tuple(parameter.shape)}; use "output"'
        )
    if groups == "kernel":
        return Part(name, lambda p: p, 2)
    return _along("input" if groups == "input" else "output", name, parameter, owner)


def _along(side: str, name: str, parameter: nn.Parameter, owner: nn.Module) -> Part:
    """Groups along the outputs or the inputs of a weight.

    A weight is stored (outputs, inputs, ...), that of a transposed convolution (inputs, outputs, ...). With groups > 1 the
    first axis runs over all channels and the second over those of one group only.
    """
    if parameter.ndim == 1:
        if side == "input":
            raise ValueError(
                f'groups="input" takes matrices and kernels, got {name!r} of shape {tuple(parameter.shape)}; use "bias"'
            )
        return Part(name, lambda p: p.unsqueeze(-1))
    first = "input" if isinstance(owner, _ConvTransposeNd) else "output"
    if side == first:
        return Part(name, lambda p: p)
    n_groups = owner.groups if isinstance(owner, _ConvNd) else 1
    if n_groups == 1:
        return Part(name, lambda p: p.transpose(0, 1))
    return Part(name, lambda p: p.unflatten(0, (n_groups, p.shape[0] // n_groups)).transpose(1, 2), 2)


def _neuron(model: nn.Module, owners: dict[str, nn.Module], parameters: dict[str, nn.Parameter], name: str) -> Block:
    """A row of the weight with its bias and the entries of the normalisation that follows it in an nn.Sequential."""
    if parameters[name].ndim < 2:
        raise ValueError(f'groups="neuron" takes weights, got {name!r} of shape {tuple(parameters[name].shape)}')
    weight = _along("output", name, parameters[name], owners[name])
    path = name.rpartition(".")[0]
    others = [f"{path}.bias" if path else "bias"]
    following = _following_norm(model, path)
    if following is not None:
        others += [f"{following}.weight", f"{following}.bias"]
    n_neurons = weight.rows(weight.cut(parameters[name])).shape[0]
    fitting = [n for n in others if n in parameters and parameters[n].shape == (n_neurons,)]
    return (weight, *(Part(n, lambda p: p.unsqueeze(-1)) for n in fitting))


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
