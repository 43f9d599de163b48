"""Multi-head attention by distance, which no scale, shift or rotation of queries and keys together changes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import positive
from ..ops import checks
from ..ops.norm import upcast
from . import layout, masks
from .scale_free import explained
from .weights import LOCALITY


class ScaleFreeAttention(nn.Module):
    r"""Multi-head attention in which each query reads from the convex combination of keys that is nearest to it.

    out_proj(concat over heads of Y_h V_h),  y_h = argmin over the simplex  1/2 ‖q - sum_j y_j k_j‖²
    + locality_h/2 sum_j y_j ‖q - k_j‖² + ridge/2 ‖y‖²

    Weights have exact zeros: at ridge = 0 at most head_dim + 1 keys a query. There is no factor 1 / sqrt(head_dim): at
    ridge = 0 nothing changes when queries and keys of a head are scaled, shifted or rotated together. Hence queries and keys
    have no bias: a common one would cancel, and a difference of two is a length, that is, a scale. `out_proj` has the only
    bias: as weights sum to 1, one of the values would add to it.

    Args:
        embed_dim: width of queries and outputs.
        num_heads: heads of queries.
        dropout: probability of dropping a weight in training.
        bias: give `out_proj` a bias.
        kdim, vdim: width of keys and of values; embed_dim if None.
        batch_first: (N, L, E) rather than torch's default (L, N, E).
        num_kv_heads: heads of keys and values, each for num_heads / num_kv_heads heads of queries; num_heads if None.
        head_dim: width of a head of queries and keys; embed_dim / num_heads if None.
        v_head_dim: width of a head of values; head_dim if None.
        locality: >= 0, the start of one strength a head, a number or a tensor (num_heads,): it pulls weights to near keys,
            larger is sparser, and a small one settles which of many answers a query inside the hull of its keys gets.
        learn_locality: learn it, as the parameter log_locality, always positive. Else it is fixed, and may be 0.
        ridge: >= 0, absolute: spreads the weights, and breaks the scale invariance.
        tol: relative duality gap at which a query stops.
        device, dtype: of the parameters.

    Shape: query (N, L, embed_dim), key (N, S, kdim), value (N, S, vdim) -> (N, L, embed_dim) and weights (N, L, S) (the mean
        over heads) or (N, num_heads, L, S); with batch_first=False the batch comes second; without a batch, no N anywhere.
        key_padding_mask (N, S), attn_mask (L, S) or (N num_heads, L, S): as in nn.MultiheadAttention boolean with
        True = IGNORE, or floating with 0 and -inf (or finfo.min) and nothing else. is_causal: query i sees keys 0..i.

    Returns: (output, weights), weights None with need_weights=False, which does not hold them where it can be avoided. A
        query that may attend to nothing gets weights 0 with gradient 0, so that its output is the bias of out_proj.

    Raises: ValueError for sizes and shapes; TypeError for dtypes and for masks that would add to scores.

    Source: Wolfe 1976 (the nearest point of a polytope); Vaswani et al. 2017 (heads and projections).

    When not to use: with weights trained for dot products, whose queries and keys do not live in one space; with one and the
        same projection for queries and keys where a query sees itself: its distance to itself is 0, and it looks no further.

    >>> import torch, sparselayers as sl
    >>> _ = torch.manual_seed(0)
    >>> attention = sl.ScaleFreeAttention(8, 2, batch_first=True)
    >>> x = torch.randn(3, 20, 8)
    >>> out, weights = attention(x, x, x, is_causal=True, average_attn_weights=False)
    >>> out.shape, weights.shape, weights.gt(0).sum(-1).max().item()
    (torch.Size([3, 20, 8]), torch.Size([3, 2, 20, 20]), 5)
    """

    # nn.TransformerEncoder and its layers read both of their attention, to see whether the fused softmax path may serve.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        v_head_dim: int | None = None,
        locality: float | Tensor = LOCALITY,
        learn_locality: bool = True,
        ridge: float = 0.0,
        tol: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.count(embed_dim, "embed_dim")
        checks.count(num_heads, "num_heads")
        if head_dim is None and embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}; or give head_dim"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.v_head_dim = self.head_dim if v_head_dim is None else v_head_dim
        for name in ("kdim", "vdim", "num_kv_heads", "head_dim", "v_head_dim"):
            checks.count(getattr(self, name), name)
        if num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads must be a multiple of num_kv_heads, got {num_heads} and {self.num_kv_heads}")
        checks.number(dropout, "dropout", 0.0, 1.0)
        checks.number(locality, "locality", 0.0)
        checks.number(ridge, "ridge", 0.0)
        checks.number(tol, "tol", 0.0)
        if isinstance(locality, Tensor) and locality.shape not in ((), (num_heads,)):
            raise ValueError(f"locality must be a number or ({num_heads},), one a head, got {tuple(locality.shape)}")
        self.dropout = dropout
        self.batch_first = batch_first
        self.ridge = ridge
        self.tol = tol
        made = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(embed_dim, num_heads * self.head_dim, bias=False, **made)
        self.k_proj = nn.Linear(self.kdim, self.num_kv_heads * self.head_dim, bias=False, **made)
        self.v_proj = nn.Linear(self.vdim, self.num_kv_heads * self.v_head_dim, bias=False, **made)
        self.out_proj = nn.Linear(num_heads * self.v_head_dim, embed_dim, bias=bias, **made)
        weight = self.out_proj.weight
        if isinstance(locality, Tensor):
            locality = locality.expand(num_heads)
        elif learn_locality and locality > 0:
            locality = torch.full((num_heads,), locality, dtype=weight.dtype, device=weight.device)
        positive.hold(self, "locality", locality, learn_locality, like=weight)
        self.reset_parameters()

    @property
    def locality(self) -> float | Tensor:
        """The strength of each head (num_heads,), or a fixed number."""
        return positive.held(self, "locality")

    def reset_parameters(self) -> None:
        """New projections; the locality stays."""
        # Of one spread whatever the widths: distances compare queries with keys.
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.uniform_(
                projection.weight, -math.sqrt(3 / projection.in_features), math.sqrt(3 / projection.in_features)
            )
        self.out_proj.reset_parameters()
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        layout.check(query, key, value, (self.embed_dim, self.kdim, self.vdim))
        batched = query.ndim == 3
        query, key, value, key_padding_mask = layout.batch_first(query, key, value, key_padding_mask, self.batch_first)
        mask = layout.allowed(attn_mask, key_padding_mask, self.num_heads, query, key)
        q = self.q_proj(query).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        k = self.k_proj(key).unflatten(-1, (self.num_kv_heads, self.head_dim)).transpose(1, 2)
        v = self.v_proj(value).unflatten(-1, (self.num_kv_heads, self.v_head_dim)).transpose(1, 2)
        if mask is not None and mask.dtype != torch.bool:
            mask = masks.in_dtype(mask, q.dtype)
        locality = self.locality
        if isinstance(locality, Tensor):
            locality = upcast(locality).view(-1, 1, 1)
        dropout = self.dropout if self.training else 0.0
        grouped = self.num_kv_heads != self.num_heads
        out, weights = explained(
            q, k, v, mask, dropout, is_causal, locality, self.ridge, self.tol, grouped, need_weights
        )
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return layout.as_given(out, weights, batched, self.batch_first, average_attn_weights)

    def extra_repr(self) -> str:
        shared = "" if self.num_kv_heads == self.num_heads else f", num_kv_heads={self.num_kv_heads}"
        ridge = f", ridge={self.ridge}" if self.ridge else ""
        return f"{self.embed_dim}, {self.num_heads}{shared}, locality={positive.brief(self, 'locality')}{ridge}"
