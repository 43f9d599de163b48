"""HardConcrete: random gates in [0, 1] that are exactly 0 or 1 with positive probability, for an l0 penalty by gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops import checks
from ..ops.norm import upcast

LEAST = 1e-6  # noise stays this far from 0 and 1, whose logits are infinite
BOUNDS = (math.log(0.01), math.log(100))  # of log_alpha in the authors' code


def stretched(s: Tensor, gamma: float, zeta: float) -> Tensor:
    """(0, 1) -> (gamma, zeta), cut to [0, 1]: what was outside becomes exactly 0 or 1."""
    return (s * (zeta - gamma) + gamma).clamp(0, 1)


def hard_concrete(log_alpha: Tensor, noise: Tensor, beta: float, gamma: float, zeta: float) -> Tensor:
    """The gate for noise in (0, 1), by reparametrisation: differentiable in log_alpha."""
    return stretched(((noise.logit() + log_alpha) / beta).sigmoid(), gamma, zeta)


class HardConcrete(nn.Module):
    r"""n gates that multiply neurons, channels or filters, and whose expected number of open ones is differentiable.

    Training: one draw a call, z = clamp(s (zeta - gamma) + gamma, 0, 1), s = sigmoid((log u - log(1 - u) + log_alpha) / beta),
    u uniform. Evaluation: z = clamp(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1), with exact zeros and ones.
    P(z != 0) = sigmoid(log_alpha - beta log(-gamma / zeta)); `expected_l0()` is its sum, to be added to the loss times lam.

    As a layer it gates activations; as a parametrization of a weight (`torch.nn.utils.parametrize`, with dim=0) it gates
    rows or filters, and removing the parametrization in eval mode leaves the exact zeros in the weight.

    Args:
        n: how many gates.
        dim: the axis of x that they run along.
        keep: in (0, 1): log_alpha starts near log(keep / (1 - keep)), with a spread of 0.01.
        beta: temperature > 0.
        gamma, zeta: the interval that is cut to [0, 1]; gamma < 0, zeta > 1.

    Shape: x of size n at `dim` -> the same; without x the gates, (n,). Noise comes from torch's generator.

    Raises: TypeError or ValueError for a bad argument, an integer x, or an x whose size at `dim` is not n.

    Source: Louizos, Welling and Kingma, ICLR 2018, equations 10 to 13.

    When not to use: where a prox does: gates need noise, twice the parameters and a schedule. Nor with a normalisation right
        after them, which undoes a gate that is not 0.

    >>> import torch, sparselayers as sl
    >>> gates = sl.HardConcrete(3).eval()
    >>> _ = gates.log_alpha.data.copy_(torch.tensor([-5.0, 0.0, 5.0]))
    >>> gates(torch.full((2, 3), 2.0)).detach()
    tensor([[0., 1., 2.],
            [0., 1., 2.]])
    >>> gates.expected_l0().detach(), gates.pruned()
    (tensor(1.8627), tensor([ True, False, False]))
    """

    def __init__(
        self,
        n: int,
        dim: int = -1,
        *,
        keep: float = 0.5,
        beta: float = 2 / 3,
        gamma: float = -0.1,
        zeta: float = 1.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.count(n, "n")
        checks.number(beta, "beta", low=0.0, open_low=True)
        checks.number(keep, "keep", low=0.0, high=1.0, open_low=True)
        if keep == 1:
            raise ValueError("keep must lie in (0, 1), got 1: a gate that is always open has log_alpha = inf; use 0.99")
        checks.number(gamma, "gamma")
        checks.number(zeta, "zeta")
        if not gamma < 0 or not zeta > 1:
            raise ValueError(
                f"gamma must be below 0 and zeta above 1, got {gamma} and {zeta}: else no gate is exactly 0 or 1"
            )
        self.n, self.dim, self.keep, self.beta, self.gamma, self.zeta = n, dim, keep, beta, gamma, zeta
        self.log_alpha = nn.Parameter(torch.empty(n, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """log_alpha near the logit of `keep`."""
        nn.init.normal_(self.log_alpha, math.log(self.keep) - math.log1p(-self.keep), 0.01)

    def forward(self, x: Tensor | None = None) -> Tensor:
        log_alpha = upcast(self.log_alpha)
        if self.training:
            noise = torch.rand_like(log_alpha).clamp(LEAST, 1 - LEAST)
            gates = hard_concrete(log_alpha, noise, self.beta, self.gamma, self.zeta)
        else:
            gates = stretched(log_alpha.sigmoid(), self.gamma, self.zeta)
        gates = gates.to(self.log_alpha.dtype)
        if x is None:
            return gates
        checks.floating(x, "x")
        dim = checks.axis(self.dim, x, "x")
        if x.shape[dim] != self.n:
            raise ValueError(
                f"x must have size {self.n} at dim {self.dim}, got shape {tuple(x.shape)}; "
                "make the gates with that n, or with the dim of the neurons"
            )
        return x * gates.to(x.dtype).view(-1, *[1] * (x.ndim - 1 - dim))

    def expected_l0(self) -> Tensor:
        """The expected number of gates that are not 0 in training, a 0-d tensor to add to the loss; differentiable."""
        return (upcast(self.log_alpha) - self.beta * math.log(-self.gamma / self.zeta)).sigmoid().sum()

    @torch.no_grad()
    def pruned(self) -> Tensor:
        """Boolean (n,): True for the gates that are exactly 0 in evaluation."""
        return stretched(upcast(self.log_alpha).sigmoid(), self.gamma, self.zeta) == 0

    @torch.no_grad()
    def clamp_(self) -> None:
        """Bring log_alpha back into [log 0.01, log 100], as the authors' code does after every step of the optimizer."""
        self.log_alpha.clamp_(*BOUNDS)

    def extra_repr(self) -> str:
        return f"{self.n}, dim={self.dim}, keep={self.keep}, beta={self.beta:.4g}, gamma={self.gamma}, zeta={self.zeta}"
