"""Which parameters of a model are taken, by rules on names and module types, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList

from .cuts import is_conv1d

Rule = str | type[nn.Module] | Callable[[str, nn.Parameter], bool]
Rules = Rule | Sequence[Rule] | None

LAYERS = (nn.Linear, _ConvNd, nn.MultiheadAttention)
EXCLUDED = "excluded"
ROLES = {"weight": "weight", "bias": "bias"}
# The projections that nn.MultiheadAttention holds are Linear layers in all but name.
JOINT_ROLES = {
    "in_proj_weight": "weight",
    "q_proj_weight": "weight",
    "k_proj_weight": "weight",
    "v_proj_weight": "weight",
    "in_proj_bias": "bias",
}


def owners_of(model: nn.Module) -> dict[str, nn.Module]:
    """Parameter name -> the module that holds it."""
    return {
        f"{path}.{leaf}" if path else leaf: module
        for path, module in model.named_modules(remove_duplicate=False)
        for leaf, _ in module.named_parameters(recurse=False, remove_duplicate=False)
    }


def reasons(
    model: nn.Module, owners: dict[str, nn.Module], groups: object, include: Rules, exclude: Rules
) -> dict[str, str | None]:
    """Parameter name -> None where it is taken, else why it is not; in the order of the model."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    wanted = {"bias": ("bias",), "outgoing": ("weight", "bias")}.get(str(groups), ("weight",))
    # A weight that an embedding or a norm owns too (a tied head) is left out unless `include` names it.
    elsewhere = {id(p): name for name, p in parameters.items() if not is_layer(owners[name])}

    def reason(name: str) -> str | None:
        parameter, owner = parameters[name], owners[name]
        role, kind = _role(name, owner), type(owner).__name__
        if exclude is not None and _named(exclude, name, parameter, owner, None):
            return EXCLUDED
        if include is not None:
            return None if _named(include, name, parameter, owner, wanted) else "not in include"
        if isinstance(owner, ParametrizationList) or name.endswith("_orig"):
            return "its layer's weight is computed from it; remove the parametrization or mask first, or name it in include"
        if role is None or not is_layer(owner):
            return f"of {kind}; name it in include"
        if role not in wanted:
            return 'a weight; groups="bias" takes biases' if role == "weight" else 'a bias; "neuron", "bias" or include'
        if groups in ("filter", "kernel") and not isinstance(owner, _ConvNd):
            return f'of {kind}; groups="{groups}" takes convolutions'
        if id(parameter) in elsewhere:
            return f"tied to {elsewhere[id(parameter)]}; name it in include"
        return None

    return {name: reason(name) for name in parameters}


def is_layer(owner: nn.Module) -> bool:
    return isinstance(owner, LAYERS) or is_conv1d(owner)


def check_rules(rules: Rules, argument: str) -> None:
    """TypeError unless every rule is a pattern, a module class or a predicate."""
    for rule in _each(rules):
        # A module is callable, and a tensor prints all its entries: neither is what was meant by a predicate.
        found = f"a {type(rule).__name__}; give names" if isinstance(rule, nn.Module | Tensor) else repr(rule)
        if isinstance(rule, nn.Module | Tensor) or not (isinstance(rule, str) or callable(rule)):
            raise TypeError(
                f"{argument} must hold name patterns, module classes or predicates (name, parameter) -> bool, got {found}"
            )


def _each(rules: Rules) -> Sequence[Rule]:
    if rules is None:
        return ()
    return rules if isinstance(rules, Sequence) and not isinstance(rules, str) else (rules,)


def _named(rules: Rules, name: str, parameter: nn.Parameter, owner: nn.Module, wanted: tuple[str, ...] | None) -> bool:
    """Does a rule name the parameter? A module class names what its modules hold in the roles `wanted`; None: all."""
    for rule in _each(rules):
        if isinstance(rule, str):
            hit = fnmatchcase(name, rule)
        elif isinstance(rule, type):
            hit = isinstance(owner, rule) and (wanted is None or _role(name, owner) in wanted)
        else:
            hit = rule(name, parameter)
        if hit:
            return True
    return False


def _role(name: str, owner: nn.Module) -> str | None:
    if isinstance(owner, nn.RNNBase):  # weight_ih_l0, bias_hh_l0_reverse, ...
        return name.rpartition(".")[2].partition("_")[0]
    return (JOINT_ROLES if isinstance(owner, nn.MultiheadAttention) else ROLES).get(name.rpartition(".")[2])
