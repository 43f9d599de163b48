"""A pattern of zeros held during fine-tuning, whatever optimizer steps."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from .sharded import local, shard_like


class Freeze:
    """Holds entries of a model's parameters at zero after every step of any optimizer, until `remove()`.

    What an optimizer keeps for such an entry (momentum, averages) becomes zero too. The model is named, not kept alive;
    a deep copy, or a pickle, together with the model holds the copied model.

    Attributes:
        zeros: parameter name -> boolean tensor, True where the entry is held at zero.
        active: False once removed.
    """

    def __init__(self, model: nn.Module, zeros: dict[str, Tensor]) -> None:
        self.zeros = zeros
        self._model = weakref.ref(model)
        for name, parameter in self._parameters().items():
            _zero(local(parameter.detach()), self._zeros_of(name, parameter))
        # torch's hook on all optimizers: which one will fine-tune is not known yet, and there may be several.
        self._handle = register_optimizer_step_post_hook(self._after_step)
        self.active = True

    def remove(self) -> None:
        """Let the entries go."""
        self._handle.remove()
        self.active = False

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        if self._model() is None:
            self.active = False
            # torch is going through its hooks now: any but the last must stay, and does nothing from here on.
            hooks = self._handle.hooks_dict_ref()
            if hooks is not None and next(reversed(hooks)) == self._handle.id:
                self.remove()
            return
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in self._parameters().items():
            if id(parameter) not in stepped:
                continue
            zeros = self._zeros_of(name, parameter)
            _zero(local(parameter.detach()), zeros)
            for held in optimizer.state.get(parameter, {}).values():
                # A state of another shape (the step count, factored averages) belongs to no single entry.
                if isinstance(held, Tensor) and held.ndim and held.shape == parameter.shape:
                    _zero(local(held), zeros)

    def _parameters(self) -> dict[str, nn.Parameter]:
        model = self._model()
        held = {} if model is None else dict(model.named_parameters(remove_duplicate=False))
        return {name: held[name] for name in self.zeros if name in held}

    def _zeros_of(self, name: str, parameter: Tensor) -> Tensor:
        """The entries held, where the parameter is: on its device, and sharded as it is by now."""
        self.zeros[name] = shard_like(self.zeros[name], parameter)
        return local(self.zeros[name])

    def __repr__(self) -> str:
        zeros = sum(int(held.sum()) for held in self.zeros.values())
        count = f"{len(self.zeros)} parameter{'s' * (len(self.zeros) != 1)}"
        return f"Freeze({zeros} zeros in {count}{'' if self.active else ', removed'})"

    def __reduce__(self) -> tuple:
        return _restored, (self._model(), self.zeros, self.active)


def _restored(model: nn.Module | None, zeros: dict[str, Tensor], active: bool) -> Freeze:
    """A copy, of the copied model."""
    twin = Freeze(nn.Module() if model is None else model, zeros if active else {})
    if not active:
        twin.zeros = zeros
        twin.remove()
    return twin


def zeros_of(parameters: dict[str, nn.Parameter], names: list[str]) -> dict[str, Tensor]:
    """The pattern of exact zeros as it stands."""
    return {name: parameters[name].detach() == 0 for name in names}


def _zero(x: Tensor, where: Tensor) -> None:
    """Zeros in place; what is zero already keeps its sign, so that a step that changed nothing stays bitwise nothing."""
    x.masked_fill_(where & (x != 0), 0)
