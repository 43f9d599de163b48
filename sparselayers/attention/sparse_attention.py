"""Dot-product attention as a module without weights of its own."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops import checks
from .dot_product import Mapping, check_mapping
from .weights import attend


class SparseAttention(nn.Module):
    r"""Attention with sparse weights as a module: `F.scaled_dot_product_attention` with dropout in training only.

    mapping(scale Q K^T + mask) V

    Args:
        mapping: "softmax", "sparsemax", "entmax15", "scale_free" (with locality 0.1), a callable (scores, dim) -> weights,
            or an nn.Module that maps scores to weights along their last axis and becomes part of this module.
        dropout: probability of dropping a weight in training.
        scale: factor of the scores, 1 / sqrt(E) if None.

    Shape: query (..., L, E), key (..., S, E), value (..., S, Ev) -> (..., L, Ev); attn_mask broadcasts to (..., L, S):
        boolean, True = may attend, or floating, added. enable_gqa repeats key and value heads (axis -3).

    Raises: ValueError for an unknown mapping, a dropout outside [0, 1], and a `scale` with "scale_free"; TypeError for a
        mapping that cannot be called.

    Source: Vaswani et al. 2017; Martins and Astudillo 2016 (sparsemax); Peters et al. 2019 (entmax).

    When not to use: with projections and heads to learn: `MultiheadAttention` has them.

    >>> import torch, sparselayers as sl
    >>> q, k = torch.tensor([[4.0, 0.0]]), torch.eye(2)
    >>> sl.SparseAttention("sparsemax")(q, k, torch.tensor([[1.0], [2.0]]))
    tensor([[1.]])
    """

    def __init__(self, mapping: Mapping = "sparsemax", dropout: float = 0.0, scale: float | None = None) -> None:
        super().__init__()
        check_mapping(mapping)
        checks.number(dropout, "dropout", 0.0, 1.0)
        if scale is not None and mapping == "scale_free":
            raise ValueError(f'mapping="scale_free" does not depend on a scale, got scale={scale!r}; leave it out')
        self.mapping = mapping
        self.dropout = dropout
        self.scale = scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        enable_gqa: bool = False,
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return attend(
            query, key, value, attn_mask, dropout, is_causal, self.scale, enable_gqa, self.mapping, need_weights=False
        )[0]

    def extra_repr(self) -> str:
        shown = "" if isinstance(self.mapping, nn.Module) else f"mapping={self.mapping!r}, "
        return f"{shown}dropout={self.dropout}, scale={self.scale}"
