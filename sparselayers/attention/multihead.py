"""nn.MultiheadAttention with any mapping in the place of softmax."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..ops import checks
from . import masks
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
        mapping: "softmax", "sparsemax", "entmax15", "scale_free" (with locality 0.01), a callable (scores, dim) -> weights,
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
        self._check_inputs(query, key, value)
        batched, one = query.ndim == 3, query is key and key is value
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        if not query.shape[0] == key.shape[0] == value.shape[0]:
            raise ValueError(
                "query, key and value must have one batch size, got "
                f"{query.shape[0]}, {key.shape[0]}, {value.shape[0]} (batch_first={self.batch_first})"
            )
        shape = (query.shape[0], self.num_heads, query.shape[1], key.shape[1])
        mask = _joined(_padding(key_padding_mask, shape), _attending(attn_mask, shape), query)
        q, k, v = self._projected(query, key, value, one)
        if k.shape[1] > key.shape[1]:
            # The keys that bias_k and add_zero_attn bring in come last and are seen by every query.
            if is_causal:
                causal = torch.ones(shape[2:], dtype=torch.bool, device=query.device).tril()
                mask, is_causal = _joined(mask, causal, query), False
            if mask is not None:
                seen = 1.0 if mask.dtype == torch.bool else 0.0
                mask = nn.functional.pad(mask, (0, k.shape[1] - key.shape[1]), value=seen)
        if mask is not None and mask.dtype != torch.bool:
            mask = masks.in_dtype(mask, q.dtype)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        out, weights = attend(q, k, v, mask, dropout, is_causal, None, False, self.mapping, need_weights)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _check_inputs(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        widths = (("query", query, self.embed_dim), ("key", key, self.kdim), ("value", value, self.vdim))
        for name, x, width in widths:
            checks.floating(x, name)
            if x.is_nested:
                raise ValueError(
                    f"{name} is a nested tensor, which only torch's fused softmax path takes; where nn.TransformerEncoder "
                    "made it, set its use_nested_tensor = False, as sl.swap_attention does"
                )
            if x.ndim not in (2, 3) or x.ndim != query.ndim or x.shape[-1] != width:
                raise ValueError(
                    f"{name} must be (length, {width}) or, for all three, batched with 3 axes, got {tuple(x.shape)} "
                    f"beside a query of shape {tuple(query.shape)}"
                )
        if key.shape[:-1] != value.shape[:-1]:
            raise ValueError(
                f"key and value must have one length and batch size, got {tuple(key.shape)} and {tuple(value.shape)}"
            )

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


def _padding(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """key_padding_mask (N, S) as a mask (N, 1, 1, S), True = may attend."""
    if mask is None:
        return None
    n, _, _, keys = shape
    if mask.shape != (n, keys):
        raise ValueError(
            f"key_padding_mask must be (batch, keys) = ({n}, {keys}), (keys,) without a batch, got {tuple(mask.shape)}"
        )
    return _turned(mask, "key_padding_mask")[:, None, None]


def _attending(mask: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """attn_mask (L, S) or (N heads, L, S) as a mask that broadcasts to (N, heads, L, S), True = may attend."""
    if mask is None:
        return None
    n, heads, *pairs = shape
    if tuple(mask.shape) not in ((*pairs,), (n * heads, *pairs)):
        raise ValueError(
            f"attn_mask must be (queries, keys) = {tuple(pairs)} or (batch * heads, queries, keys) = {(n * heads, *pairs)}, "
            f"got {tuple(mask.shape)}"
        )
    mask = _turned(mask, "attn_mask")
    return mask if mask.ndim == 2 else mask.unflatten(0, (n, heads))


def _turned(mask: Tensor, name: str) -> Tensor:
    """True = ignore, as in nn.MultiheadAttention, into True = may attend; floating masks mean the same in both."""
    if mask.dtype == torch.bool:
        return ~mask
    if not mask.is_floating_point():
        raise TypeError(
            f"{name} must be boolean (True = ignore) or floating (added), got {mask.dtype}; use {name}.bool()"
        )
    return mask


def _joined(one: Tensor | None, other: Tensor | None, like: Tensor) -> Tensor | None:
    """Both masks in one: boolean where both are, else a sum in which whatever either masks is -inf."""
    if one is None or other is None:
        return other if one is None else one
    if one.dtype == other.dtype == torch.bool:
        return one & other
    return _added(one, like) + _added(other, like)


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
