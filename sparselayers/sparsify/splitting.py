"""Penalty decomposition: weights follow the loss, a copy of them is sparse, and a growing pull makes the two one."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn

from ..ops import checks
from ..ops.norm import upcast
from ..prox import L0, GroupL2, Penalty
from .groups import Groups, Include
from .metric import Rate
from .multitensor import prox_
from .regularizer import Regularizer
from .sharded import Unsharded, local, shard_like, whole


class Checkpoint(TypedDict):
    """What `PenaltyDecomposition.state_dict` gives."""

    lam: float
    beta: float
    sigma: float
    V: dict[str, Tensor]


class PenaltyDecomposition:
    r"""Sparse group l0asso by penalty decomposition: the weights W are split from a sparse copy V.

    min_{W, V}  loss(W) + lam sum_g sqrt(n_g) ‖w_g‖_2 + lam R(V) + beta/2 ‖W - V‖²,    R = ‖.‖_0 by default.

    W by gradient, of the loss plus value() = lam GL(W) + beta/2 ‖W - V‖²;  V in closed form, by step():
    V = prox_{lam/beta R}(W), for l0 the entries with abs(w) > sqrt(2 lam / beta);  grow(): beta <- sigma beta. As beta
    grows V and W become one. At the end apply() makes W zero where V is. `V` is {name: tensor}, shaped as the weights and
    on their device; it starts at the prox of W.

    Args:
        model: any nn.Module; names are kept, not parameters.
        lam: strength >= 0 of both terms; may be reassigned. For a strength a layer take one object a layer, by `include`.
        beta: strength > 0 of the pull between W and V; may be reassigned.
        sigma: the factor >= 1 of `grow`.
        groups: the groups of GL, as in `sl.Regularizer`; n_g is the size of a group.
        penalty: R, any penalty with a prox: L1, TransformedL1, SCAD, ...; one that is not separable sees each group as a row.
        include: which parameters, as in `sl.Regularizer`.

    Raises: TypeError or ValueError for a bad argument, for a penalty without a prox, and where the groups do not fit.

    Source: Bui, Park, Zhang, Qi and Xin, arXiv 1912.07868, Algorithm 1; the paper ends by zeroing entries below 1e-5.

    When not to use: for zeros while training, or where a second copy of the weights is too much: `sl.SparseGroupL0` in a
        `sl.Regularizer` takes the exact prox of the same penalty.

    >>> import torch, sparselayers as sl
    >>> layer = torch.nn.Linear(2, 2)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
    >>> split = sl.PenaltyDecomposition(layer, lam=0.01, beta=0.16)
    >>> split.V["weight"]  # sqrt(2 lam / beta) is 0.35
    tensor([[3.0000, 4.0000],
            [0.0000, 0.4000]])
    >>> split.value()
    tensor(0.0850, grad_fn=<AddBackward0>)
    >>> split.apply()
    >>> sl.sparsity_report(layer).weights_zero
    1
    """

    def __init__(
        self,
        model: nn.Module,
        lam: float,
        beta: float,
        sigma: float = 1.25,
        groups: Groups = "output",
        penalty: Penalty = L0(),  # noqa: B008 - a frozen dataclass
        include: Include = None,
    ) -> None:
        if not isinstance(penalty, Penalty):
            raise TypeError(f"penalty must be a Penalty such as L0(), got {penalty!r}")
        checks.scalar(lam, "lam", low=0.0)
        checks.scalar(beta, "beta", low=0.0, open_low=True)
        checks.number(sigma, "sigma", low=1.0)
        self.group_lasso = Regularizer(model, GroupL2(sqrt_size=True), 1.0, groups, include)
        self.lam, self.beta, self.sigma, self.penalty = lam, beta, sigma, penalty
        weights = self._weights()
        self._V = {name: torch.empty_like(w, requires_grad=False) for name, w in weights.items()}
        self.step()

    @property
    def V(self) -> dict[str, Tensor]:
        """The sparse copy by parameter name, with the dtype and on the device that the weights have now."""
        self._V = {name: shard_like(self._V[name].to(w.dtype), w) for name, w in self._weights().items()}
        return self._V

    def value(self) -> Tensor:
        """lam GL(W) + beta/2 ‖W - V‖², a 0-d tensor to add to the loss; differentiable in the weights W."""
        weights = {name: whole(w) for name, w in self._weights().items()}
        V = {name: whole(v) for name, v in self.V.items()}
        parts = [part for block in self.group_lasso.blocks for part in block]
        # In float32 for 16-bit weights, whose squares leave the range of float16.
        apart = [upcast(part.cut(weights[part.name]) - part.cut(V[part.name])).square().sum() for part in parts]
        total = self.lam * self.group_lasso._sum() + self.beta / 2 * torch.stack(apart).sum()
        return total.to(self.group_lasso._dtype)

    @torch.no_grad()
    def step(self) -> None:
        """V <- argmin_V  lam R(V) + beta/2 ‖V - W‖²; after each step of the optimizer."""
        weights, V = self._weights(), self.V
        for name, v in V.items():
            local(v).copy_(local(weights[name]))
        blocks = self.group_lasso.blocks
        plain = Unsharded(V, blocks)
        prox_(self.penalty, blocks, plain.tensors, dict.fromkeys(V, Rate(1 / self.beta)), self.lam)
        plain.write()

    def grow(self) -> None:
        """beta <- sigma beta; now and then, in the paper each 40 epochs of 200."""
        self.beta *= self.sigma

    @torch.no_grad()
    def apply(self) -> None:
        """Make W exactly zero where V is; the other entries of W stay as they were trained."""
        V = self.V
        for name, w in self._weights().items():
            local(w).copy_(torch.where(local(V[name]) == 0, 0, local(w)))

    def state_dict(self) -> Checkpoint:
        """lam, beta, sigma and a copy of V, for a checkpoint beside those of the model and the optimizer."""
        V = {name: v.clone() for name, v in self.V.items()}
        return {"lam": self.lam, "beta": self.beta, "sigma": self.sigma, "V": V}

    @torch.no_grad()
    def load_state_dict(self, state: Checkpoint) -> None:
        """Go on from a checkpoint; ValueError where it is of other parameters."""
        missing = Checkpoint.__required_keys__ - state.keys()
        if missing:
            raise ValueError(
                f"state must come from PenaltyDecomposition.state_dict(), got one without {', '.join(sorted(missing))}"
            )
        found = {name: tuple(v.shape) for name, v in state["V"].items()}
        expected = {name: tuple(v.shape) for name, v in self.V.items()}
        if found != expected:
            raise ValueError(
                f"the checkpoint's V must be of the parameters {expected}, got {found}; "
                "build the object with the model, groups and include that it was saved with"
            )
        for name, v in self.V.items():
            local(v).copy_(local(shard_like(state["V"][name], v)))
        self.lam, self.beta, self.sigma = state["lam"], state["beta"], state["sigma"]

    def _weights(self) -> dict[str, nn.Parameter]:
        parameters = dict(self.group_lasso.model.named_parameters(remove_duplicate=False))
        return {name: parameters[name] for name in self.group_lasso.names}

    def __repr__(self) -> str:
        return (
            f"PenaltyDecomposition(lam={self.lam}, beta={self.beta}, sigma={self.sigma}, "
            f"groups={self.group_lasso.groups!r}, penalty={self.penalty!r}, {len(self._V)} parameters)"
        )
