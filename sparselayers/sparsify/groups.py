"""How a model's weights are cut into groups: which parameters, and each as a view (n_groups, ...), by parameter name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import cast

from torch import Tensor, nn

from .cuts import Block, Cut, Part, named_part
from .heads import Heads, head_blocks
from .neuron import Neurons, neuron
from .rules import EXCLUDED, Rules, check_rules, owners_of, reasons
from .sharded import outlines

Groups = str | Heads | Neurons | Callable[[str, nn.Parameter], Tensor | None]
Include = Rules

NAMES = ("output", "input", "neuron", "filter", "kernel", "head", "outgoing", "element", "bias", "tensor")

__all__ = ["Block", "Groups", "Include", "Part", "cut_model"]


def cut_model(model: nn.Module, groups: Groups, include: Include, exclude: Include = None) -> list[Block]:
    """The blocks of a model, each parameter taken once; ValueError where nothing is caught or a cut does not fit."""
    if isinstance(groups, str) and groups not in NAMES:
        raise ValueError(
            f"groups must be one of {', '.join(NAMES)}, an sl.Heads, an sl.Neurons or a callable (name, parameter) -> view, "
            f"got {groups!r}"
        )
    if not isinstance(groups, str | Heads | Neurons) and not callable(groups):
        raise TypeError(f"groups must be a name or a callable (name, parameter) -> view, got {groups!r}")
    check_rules(include, "include")
    check_rules(exclude, "exclude")
    if isinstance(groups, Neurons):
        groups.check(model)
    owners = owners_of(model)
    blocks = list(_cut(model, owners, groups, include, exclude))
    if not blocks:
        excluded = "" if exclude is None else f" and exclude={exclude!r}"
        raise ValueError(
            f"groups={groups!r} with include={include!r}{excluded} caught no parameter; the model's parameters are: "
            f"{_left_out(reasons(model, owners, groups, include, exclude))}; {_remedy(owners, groups, include)}"
        )
    return blocks


def _left_out(why: dict[str, str | None], most: int = 20) -> str:
    """The first names of a model's parameters, each with why it was not caught where that is not said already."""
    said = {None, "not in include", EXCLUDED}
    names = [name if why[name] in said else f"{name} ({why[name]})" for name in sorted(why)]
    return ", ".join(names[:most] + [f"and {len(names) - most} more"] * (len(names) > most)) or "none"


def _remedy(owners: dict[str, nn.Module], groups: Groups, include: Include) -> str:
    if groups == "head" or isinstance(groups, Heads):
        return "heads of other modules: give sl.Heads(...)"
    for rule in (include,) if isinstance(include, str) else include if isinstance(include, Sequence) else ():
        if isinstance(rule, str) and any(fnmatchcase(name, f"{rule}.*") for name in owners):
            return f'a pattern is matched with whole names: for all that is in {rule} write "{rule}.*"'
    return "choose groups and include that fit them"


def _cut(
    model: nn.Module, owners: dict[str, nn.Module], groups: Groups, include: Include, exclude: Include
) -> Iterator[Block]:
    parameters = outlines(model)
    why = reasons(model, owners, groups, include, exclude)
    taken: set[int] = set()

    def free(part: Part) -> bool:
        return why[part.name] != EXCLUDED and id(parameters[part.name]) not in taken

    for block in _blocks(model, owners, parameters, groups, why, taken):
        new = tuple(filter(free, block))
        taken.update(id(parameters[part.name]) for part in new)
        if new:
            yield new


def _blocks(
    model: nn.Module,
    owners: dict[str, nn.Module],
    parameters: dict[str, nn.Parameter],
    groups: Groups,
    why: dict[str, str | None],
    taken: set[int],
) -> Iterator[Block]:
    """Blocks as the rules have them; `taken` grows while they are made."""
    if groups == "head" or isinstance(groups, Heads):
        for block in head_blocks(model, parameters, groups if isinstance(groups, Heads) else None):
            yield tuple(part for part in block if why[part.name] is None)
        return
    for name, parameter in parameters.items():
        if why[name] is not None or id(parameter) in taken:
            continue
        if callable(groups):
            yield _by_callable(groups, name, parameter)
        elif groups == "neuron" or isinstance(groups, Neurons):
            norms = groups.norms if isinstance(groups, Neurons) else ()
            yield neuron(model, owners, parameters, name, norms)
        else:
            yield (named_part(cast(str, groups), name, parameter, owners[name]),)


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
    if any(n > 1 and stride == 0 for n, stride in zip(view.shape, view.stride(), strict=True)):
        raise ValueError(
            f"groups(name, parameter) shows an entry of {name!r} of shape {tuple(parameter.shape)} more than once, and a step "
            "cannot write it twice; leave out expand, or use sl.LatentGroupL2 for groups that overlap"
        )

    return (Part(name, cast(Cut, partial(groups, name))),)
