"""The least squares problem over the simplex in plain torch operations: its gradient, its gap, and its derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.eager import may_branch
from ..ops.spectral import squared_norm

CHORD_STEPS = 4  # two for two orders of derivative, two for what the constant inverse is short of
POWER_STEPS = 20
POWER_MARGIN = 1.1


class LeastSquares:
    """One problem a query: 1/2 ‖x - y K‖² + locality/2 sum y ‖x - k‖² + ridge/2 ‖y‖², y on the simplex, 0 where not usable.

    Queries x (..., m, d), finite atoms (..., n, d), usable (..., m, n), strengths that broadcast to (..., m, 1).
    """

    def __init__(
        self, x: Tensor, atoms: Tensor, usable: Tensor, locality: float | Tensor, ridge: float | Tensor
    ) -> None:
        self.x, self.atoms, self.usable, self.locality, self.ridge = x, atoms, usable, locality, ridge
        products = x @ atoms.mT
        # ‖x - k‖² without its part in x alone, which is constant on the simplex
        nearness = atoms.square().sum(-1).unsqueeze(-2) / 2 - products
        self.linear = locality * nearness - products

    @staticmethod
    def of(
        x: Tensor, atoms: Tensor, mask: Tensor | None, locality: float | Tensor, ridge: float | Tensor
    ) -> LeastSquares:
        """The problem in coordinates in which it is well conditioned; its weights are the same."""
        x, atoms, usable, members = centred(x, atoms, mask)
        radius = torch.where(members, atoms, 0).detach().abs().amax((-2, -1), keepdim=True)
        # One atom for everybody, as under a causal mask, has no size. A power of two shows nobody what he may not use.
        largest = atoms.detach().abs().amax((-2, -1), keepdim=True).log2().floor().exp2()
        radius = torch.where(radius > 0, radius, torch.where(largest > 0, largest, 1))
        if isinstance(ridge, Tensor) or ridge > 0:
            ridge = ridge / radius / radius
        return LeastSquares(x / radius, atoms / radius, usable, locality, ridge)

    def fixed(self, dtype: torch.dtype) -> LeastSquares:
        """The same without a graph."""
        locality, ridge = (q.detach().to(dtype) if isinstance(q, Tensor) else q for q in (self.locality, self.ridge))
        return LeastSquares(self.x.detach().to(dtype), self.atoms.detach().to(dtype), self.usable, locality, ridge)

    def gradient(self, y: Tensor) -> Tensor:
        return (y @ self.atoms) @ self.atoms.mT + self.linear + self.ridge * y

    def curvature(self, shared: bool) -> Tensor:
        """An upper bound on the largest eigenvalue of K K^T + ridge I, one a set of atoms (..., 1, 1) if they are shared.

        Else one a query (..., m, 1), of its own atoms: by a power iteration, with a margin.
        """
        if shared:
            bound = squared_norm(self.atoms)[..., None, None]
        else:
            n = self.atoms.shape[-2]
            start = torch.arange(n, device=self.x.device, dtype=self.x.dtype).square().cos()
            u, bound = torch.where(self.usable, start, 0), self.x.new_zeros(())
            for _ in range(POWER_STEPS):
                u = u / torch.linalg.vector_norm(u, dim=-1, keepdim=True).clamp_min(torch.finfo(u.dtype).tiny)
                u = torch.where(self.usable, (u @ self.atoms) @ self.atoms.mT, 0)
                bound = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
            bound = POWER_MARGIN * bound
        bound = bound + self.ridge
        return torch.where(bound > 0, bound, 1)

    def distances(self) -> Tensor:
        """‖x - k‖² (..., m, n)."""
        sizes = self.atoms.square().sum(-1).unsqueeze(-2)
        return (self.x.square().sum(-1, keepdim=True) + sizes - 2 * self.x @ self.atoms.mT).clamp_min(0)

    def gap(self, y: Tensor) -> Tensor:
        """<g, y> - min g over the usable atoms, relative to max ‖k - x‖²: (..., m, 1)."""
        g = self.gradient(y)
        least = torch.where(self.usable, g, torch.inf).amin(-1, keepdim=True)
        excess = (torch.where(self.usable, g - least, 0) * y).sum(-1, keepdim=True)
        scale = torch.where(self.usable, self.distances(), 0).amax(-1, keepdim=True)
        return torch.where(scale == 0, 0, excess / torch.where(scale == 0, 1, scale))

    def attach_derivative(self, y: Tensor) -> Tensor:
        r"""The value of y with the derivative of the optimum on its support S.

        On S, with C the projection on sum 0, the optimum solves  C (G_SS + ridge I) y_S = -C linear_S.  Chord steps from
        the constant y, y <- y - N (residual - its constant value), write that in plain torch operations: each step makes
        one more order of derivative exact. N is a constant inverse of C (G_SS + ridge I) C that vanishes where that is
        singular (affinely dependent atoms have many derivatives; this is nearly the smallest); what it is short of the
        inverse elsewhere, each step reduces by the same factor again.
        """
        n, d = self.atoms.shape[-2:]
        if may_branch(y):
            room = max(1, int((y > 0).sum(-1).max())) if y.numel() else 1
        else:
            room = n if isinstance(self.ridge, Tensor) or self.ridge > 0 else min(n, d + 2)
        kept, where = y.detach().topk(room, dim=-1)
        member = (kept > 0).to(y.dtype)
        across, members = member.unsqueeze(-2), torch.zeros_like(y).scatter(-1, where, member)
        fixed = self.atoms.detach().unsqueeze(-3).expand(*y.shape[:-1], n, d)
        rows = fixed.gather(-2, where.unsqueeze(-1).expand(*where.shape, d)) * member.unsqueeze(-1)
        ridge = self.ridge.detach() if isinstance(self.ridge, Tensor) else self.ridge
        spread = _balanced(rows.mT, across)
        gram = spread.mT @ spread + torch.as_tensor(ridge).unsqueeze(-1) * _balanced(torch.diag_embed(member), across)
        count = member.sum(-1, keepdim=True).clamp_min(1)
        mean = torch.diagonal(gram, dim1=-2, dim2=-1).sum(-1, keepdim=True) / count
        mean = torch.where(mean > 0, mean, 1).unsqueeze(-1)
        # What C takes out is filled in, so that only true dependence among the atoms is near singular.
        filled = torch.diag_embed(1 - member) + across * member.unsqueeze(-1) / count.unsqueeze(-1)
        slight = torch.finfo(y.dtype).eps ** 0.5 * torch.eye(room, dtype=y.dtype, device=y.device)
        factor = torch.linalg.cholesky_ex(gram + mean * (filled + slight))[0]

        def inverse(v: Tensor) -> Tensor:
            small = _balanced(v.gather(-1, where), member)
            once = torch.cholesky_solve(small.unsqueeze(-1), factor)
            small = _balanced(torch.cholesky_solve(gram @ once, factor).squeeze(-1), member)
            return torch.zeros_like(v).scatter(-1, where, small)

        start = y.detach()
        offset = (self.gradient(start) * members).detach()
        weights = start
        for _ in range(CHORD_STEPS):
            weights = weights - inverse(self.gradient(weights) * members - offset)
        return y + (weights - start)


def centred(x: Tensor, atoms: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and atoms about a common centre, the mask as it is in full, and the atoms (..., n, 1) that the centre is of.

    The centre is that of the atoms that all queries may use, if there are such: then no query sees, be it in rounding, what
    it may not use. An atom that is not finite becomes 0, and a query that may use it NaN.
    """
    sound = atoms.detach().isfinite().all(-1)
    usable = torch.ones((), dtype=torch.bool, device=x.device) if mask is None else mask
    usable = usable.expand(*x.shape[:-1], atoms.shape[-2])
    x = torch.where((usable & ~sound.unsqueeze(-2)).any(-1, keepdim=True), torch.nan, x)
    rows = usable if atoms.ndim > 2 else usable.flatten(0, -2)
    everybody, somebody = rows.all(-2), rows.any(-2)
    members = torch.where(everybody.any(-1, keepdim=True), everybody, somebody).unsqueeze(-1)
    kept = (sound & somebody).unsqueeze(-1)
    atoms = torch.where(kept, atoms, 0)
    members = members & kept
    centre = torch.where(members, atoms, 0).sum(-2, keepdim=True) / members.sum(-2, keepdim=True).clamp_min(1)
    return x - centre, torch.where(kept, atoms - centre, 0), usable, members


def _balanced(v: Tensor, member: Tensor) -> Tensor:
    """v (..., n) on the members (1, not 0) less its mean over them, and 0 elsewhere."""
    count = member.sum(-1, keepdim=True).clamp_min(1)
    return (v - (v * member).sum(-1, keepdim=True) / count) * member
