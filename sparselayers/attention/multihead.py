"""nn.MultiheadAttention with any mapping in the place of softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import checks
from . import layout, masks
from .dot_product import Mapping, check_mapping
from .weights import attend


class MultiheadAttention(nn.MultiheadAttention):
    r"""Multi-head attention with sparse weights: nn.MultiheadAttention with `mapping` in the place of softmax.

    out_proj(concat over heads of mapping(Q_h K_h^T / sqrt(head_dim) + mask) V_h)

    It is an nn.MultiheadAttention with the same arguments, attributes, state_dict and masks: weights load either way. With
    mapping="softmax" outputs are torch's. It never takes torch's fused inference path, whose weights are softmax.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as for
            nn.MultiheadAttention.
        mapping: "softmax", "sparsemax", "entmax15", "scale_free" (with locality 0.1), a callable (scores, dim) -> weights,
            or an nn.Module that maps scores (N, heads, L, S) to weights along their last axis; its parameters are then
            part of this module, under "mapping.".

    Shape: query (N, L, E), key (N, S, kdim), value (N, S, vdim) -> (N, L, E) and weights (N, L, S) (the mean over heads) or
        (N, heads, L, S); with batch_first=False, as in torch, the batch comes second; without a batch, no N anywhere.
        key_padding_mask (N, S), attn_mask (L, S) or (N heads, L, S): boolean, True = IGNORE, or floating, added; they may be
        of different kinds. -inf and finfo.min count as masked. S grows by one with add_bias_kv and with add_zero_attn.

    Returns: (output, weights), weights None with need_weights=False, which holds no (L, S) matrix where it can be avoided.
        A query that may attend to nothing gets weights 0, so that its output is the bias of out_proj, never NaN.
        is_causal masks the keys after each query, with or without attn_mask (torch wants one, and may then skip it).

    Raises: ValueError for sizes, shapes and unknown mappings; TypeError for dtypes.

    Source: Vaswani et al. 2017; Martins and Astudillo 2016 (sparsemax); Correia, Niculae and Martins 2019 (in transformers).

    When not to use: with nested tensors; with need_weights=True (the default, as in torch) where nobody looks at the weights.

    >>> import torch, sparselayers as sl
    >>> attention = sl.MultiheadAttention(8, 2, batch_first=True)
    >>> x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    >>> out, weights = attention(x, x, x, key_padding_mask=torch.tensor([[False, False, True, True, True]]).expand(3, 5))
    >>> weights[:, :, 2:].any()
    tensor(False)
    """

    mapping: Mapping

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        mapping: Mapping = "sparsemax",
    ) -> None:
        checks.count(embed_dim, "embed_dim")
        checks.count(num_heads, "num_heads")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim must be a multiple of num_heads, got {embed_dim} and {num_heads}")
        checks.number(dropout, "dropout", 0.0, 1.0)
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        self.set_mapping(mapping)

    def set_mapping(self, mapping: Mapping) -> None:
        """Use another mapping from now on; all weights stay."""
        check_mapping(mapping)
        if isinstance(getattr(self, "mapping", None), nn.Module):
            del self.mapping
        self.mapping = mapping
        # nn.TransformerEncoderLayer looks here before it takes its fused path, and nn.TransformerEncoder before it makes
        # nested tensors: both would read the weights of this module and attend by softmax without calling it.
        self._qkv_same_embed_dim = False

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
        one = query is key and key is value
        layout.check(query, key, value, (self.embed_dim, self.kdim, self.vdim))
        batched = query.ndim == 3
        query, key, value, key_padding_mask = layout.batch_first(query, key, value, key_padding_mask, self.batch_first)
        mask = layout.allowed(attn_mask, key_padding_mask, self.num_heads, query, key)
        q, k, v = self._projected(query, key, value, one)
        if k.shape[1] > key.shape[1]:
            # The keys that bias_k and add_zero_attn bring in come last and are seen by every query.
            if is_causal:
                causal = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool, device=query.device).tril()
                mask, is_causal = layout.joined(mask, causal, query), False
            if mask is not None:
                seen = 1.0 if mask.dtype == torch.bool else 0.0
                mask = nn.functional.pad(mask, (0, k.shape[1] - key.shape[1]), value=seen)
        if mask is not None and mask.dtype != torch.bool:
            mask = masks.in_dtype(mask, q.dtype)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        out, weights = attend(q, k, v, mask, dropout, is_causal, None, False, self.mapping, need_weights)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return layout.as_given(out, weights, batched, self.batch_first, average_attn_weights)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, one: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, L, E), keys and values (N, S + extra, E)."""
        linear, packed, bias = nn.functional.linear, self.in_proj_weight, self.in_proj_bias
        if packed is not None and one:
            q, k, v = linear(query, packed, bias).chunk(3, -1)
        else:
            separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            weights = separate if packed is None else packed.chunk(3)
            biases = (None, None, None) if bias is None else bias.chunk(3)
            q, k, v = (linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, b.to(x.dtype).expand(len(x), 1, -1)], 1) for x, b in ((k, self.bias_k), (v, self.bias_v))
            )
        if self.add_zero_attn:
            k, v = (torch.cat([x, x.new_zeros(len(x), 1, x.shape[-1])], 1) for x in (k, v))
        return q, k, v

    def extra_repr(self) -> str:
        shown = "" if isinstance(self.mapping, nn.Module) else f", mapping={self.mapping!r}"
        return f"{self.embed_dim}, {self.num_heads}{shown}"
