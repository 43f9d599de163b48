"""ProxSGD and ProxAdamW: torch's optimizers with the prox step inside, made for the true minimum of loss + lam R."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.optimizer import ParamsT

from .hook import FirstMomentum
from .metric import inertial
from .regularizer import Regularizer

Regularizers = Regularizer | Sequence[Regularizer] | None


class ProxSGD(SGD):
    r"""torch.optim.SGD with the prox step of one or several regularizers after every step.

    w <- prox_{lr lam R}(w - lr (g + momentum)):  minimises loss + lam R.

    What the prox takes off a weight enters the momentum as a gradient does, so momentum, dampening and Nesterov's variant
    change the speed and not the minimum, and a weight that stays at zero has no momentum left. (SGD with `attach` sums
    gradients only: with momentum it converges to the minimum for lam (1 - momentum).) At lam = 0 it is SGD, bit for bit.

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize, foreach, differentiable, fused: as in
            torch.optim.SGD.
        regularizer: a Regularizer, or several on different parameters, or None. A copy or a pickle of the optimizer has
            a copy of it and of its model: copy.deepcopy((model, optimizer)) is a pair that belongs together.

    Raises: ValueError where two regularizers catch one parameter, or none of the parameters held is caught.

    Source: Ochs, Chen, Brox and Pock, SIAM J. Imaging Sci. 2014 (iPiano: momentum around a prox).

    When not to use: for weights whose gradients differ much in scale, which Adam's step sizes even out (ProxAdamW).

    >>> import torch, sparselayers as sl
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[2.0, 0.3]]))
    >>> optimizer = sl.ProxSGD(layer.parameters(), lr=0.5, regularizer=sl.Regularizer(layer, sl.L1(), lam=1.0))
    >>> layer.weight.grad = torch.ones(1, 2)
    >>> optimizer.step()
    >>> layer.weight.data
    tensor([[1., 0.]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        regularizer: Regularizers = None,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        self.regularizers = _several(regularizer)
        self._hold()

    def _hold(self) -> None:
        first = FirstMomentum()
        self.register_step_pre_hook(first.before)
        self.register_step_post_hook(first.after)
        for regularizer in self.regularizers:
            regularizer._attach(self, inertial)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "regularizers": self.regularizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if (
            "regularizers" in state
        ):  # a copy or a pickle, whose hooks torch leaves behind; load_state_dict comes without
            self._hold()


class ProxAdamW(AdamW):
    r"""torch.optim.AdamW with the prox step of one or several regularizers, in Adam's metric, after every step.

    v = w - lr D^-1 m,  D = sqrt(v_hat) + eps;    w <- argmin_w  1/2 (w - v)^T D (w - v) + lr lam R(w):  exact in every
    entry's own step size, so its fixed points are those of loss + lam R. The Euclidean prox after Adam has others.

    Args:
        params, lr, betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused: as in torch.optim.AdamW.
            `eps` bounds what a weight that is hardly ever visited shrinks by: lr lam / eps.
        weight_decay: as in torch.optim.AdamW, but 0: a decay moves the minimum.
        regularizer: a Regularizer, or several on different parameters, or None. A copy or a pickle of the optimizer has
            a copy of it and of its model: copy.deepcopy((model, optimizer)) is a pair that belongs together.

    Raises: ValueError for a penalty without a prox in a metric, naming those that have one; where two regularizers catch
    one parameter, or none of the parameters held is caught.

    Source: Yun, Lozano and Yang, NeurIPS 2021 (ProxGen); Deleu and Bengio 2021 (groups in a metric).

    When not to use: where many weights are rarely visited (tokens, experts): D is tiny there, and they shrink fast. Use a
    larger `eps`, or torch's AdamW with `attach(optimizer, metric="optimizer", floor=...)`.

    >>> import torch, sparselayers as sl
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[2.0, 2.0]]))
    >>> optimizer = sl.ProxAdamW(layer.parameters(), lr=0.5, regularizer=sl.Regularizer(layer, sl.L1(), lam=1.0))
    >>> layer.weight.grad = torch.tensor([[1.0, 0.25]])
    >>> optimizer.step()
    >>> layer.weight.data
    tensor([[1., 0.]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        regularizer: Regularizers = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,  # type: ignore[arg-type]
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )
        self.regularizers = _several(regularizer)
        self._hold()

    def _hold(self) -> None:
        for regularizer in self.regularizers:
            regularizer.attach(self, metric="optimizer", floor=0.0)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "regularizers": self.regularizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if (
            "regularizers" in state
        ):  # a copy or a pickle, whose hooks torch leaves behind; load_state_dict comes without
            self._hold()


def _several(regularizer: Regularizers) -> list[Regularizer]:
    several = (
        list(regularizer) if isinstance(regularizer, list | tuple) else [] if regularizer is None else [regularizer]
    )
    for one in several:
        if not isinstance(one, Regularizer):
            raise TypeError(f"regularizer must be a Regularizer or a list of them, got {type(one).__name__}")
    return cast(list[Regularizer], several)
