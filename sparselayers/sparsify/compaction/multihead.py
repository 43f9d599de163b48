"""nn.MultiheadAttention without some of its heads, which torch's own class has no room for."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .trial import Edits


class CompactMultiheadAttention(nn.MultiheadAttention):
    r"""What `compact` makes of an nn.MultiheadAttention that loses heads: as wide outside, fewer heads of the old width inside.

    out_proj(concat over the heads that are left of softmax(Q_h K_h^T / sqrt(head_dim) + mask) V_h)

    Arguments, masks and outputs are those of nn.MultiheadAttention, with need_weights the weights of the heads that are left
    (their mean where averaged). An attn_mask a head may have one for each head there was, or for each that is left.
    `kept_heads`, a buffer, says which those are. Nested tensors are taken for self-attention without gradients, as there.

    Not built by hand: by `compact`, or by `load_compact` from its state_dict.
    """

    kept_heads: Tensor
    num_heads_before: int

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
        if query.is_nested:
            return self._nested(query, key, value), None
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, as in nn.MultiheadAttention; give the mask, too")
        batched = query.ndim == 3
        if not batched:
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._projected(query, key, value)
        # The hint is taken at its word where torch does so: the fused routine then needs no mask.
        is_causal = is_causal and key_padding_mask is None and not need_weights and k.shape[1] == key.shape[1]
        mask = None if is_causal else self._added(attn_mask, key_padding_mask, query)
        if mask is not None and k.shape[1] > key.shape[1]:
            mask = nn.functional.pad(mask, (0, k.shape[1] - key.shape[1]))  # every query sees the keys that were added
        q, k, v = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k, v))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = nn.functional.dropout(weights, dropout) if dropout else weights
            out = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = nn.functional.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        linear, packed, bias = nn.functional.linear, self.in_proj_weight, self.in_proj_bias
        if packed is not None and query is key and key is value:
            q, k, v = linear(query, packed, bias).chunk(3, -1)
        else:
            separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            weights = separate if packed is None else packed.chunk(3)
            biases = (None, None, None) if bias is None else bias.chunk(3)
            q, k, v = (linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, b.expand(len(x), 1, -1)], 1) for x, b in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (torch.cat([x, x.new_zeros(len(x), 1, x.shape[-1])], 1) for x in (k, v))
        return q, k, v

    def _added(self, attn_mask: Tensor | None, padding: Tensor | None, query: Tensor) -> Tensor | None:
        """Both masks in one that is added to scores (N, heads, L, S), or None."""
        if attn_mask is not None and attn_mask.ndim == 3:
            heads = attn_mask.shape[0] // max(len(query), 1)
            if heads not in (self.num_heads, self.num_heads_before) or attn_mask.shape[0] != heads * len(query):
                raise ValueError(
                    f"attn_mask must be (queries, keys) or (batch * heads, queries, keys) with batch {len(query)} and "
                    f"{self.num_heads_before} heads, or the {self.num_heads} that are left, got {tuple(attn_mask.shape)}"
                )
            attn_mask = attn_mask.unflatten(0, (len(query), heads))
            if heads != self.num_heads:
                attn_mask = attn_mask.index_select(1, self.kept_heads)
        given = [attn_mask, None if padding is None else padding[:, None, None]]
        added = [_floating(mask, query) for mask in given if mask is not None]
        return sum(added[1:], added[0]) if added else None

    def _nested(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """nn.TransformerEncoder leaves out padding by nested tensors: padded, attended, and nested again."""
        if query is not key or key is not value:
            raise ValueError("nested tensors are for self-attention: query, key and value must be one tensor")
        lengths = torch.tensor([len(x) for x in query.unbind()], device=query.device)
        x = query.to_padded_tensor(0.0)
        seen = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)
        one = x if self.batch_first else x.transpose(0, 1)
        out = self(one, one, one, key_padding_mask=~seen, need_weights=False)[0]
        return torch._nested_tensor_from_mask(out if self.batch_first else out.transpose(0, 1), seen, mask_check=False)

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads} of {self.num_heads_before} heads"


def make_room(attention: nn.MultiheadAttention, edits: Edits) -> None:
    """Let an nn.MultiheadAttention be one that may lose heads: the same object with the same parameters, all heads left."""
    edits.set(attention, "num_heads_before", attention.num_heads)
    edits.buffer(attention, "kept_heads", torch.arange(attention.num_heads, device=attention.out_proj.weight.device))
    edits.set(attention, "__class__", CompactMultiheadAttention)
    # nn.TransformerEncoderLayer looks here before it takes its fused path, which would read in_proj_weight past this class.
    edits.set(attention, "_qkv_same_embed_dim", False)


def _floating(mask: Tensor, like: Tensor) -> Tensor:
    """True = ignore as -inf; a floating mask is what is added already."""
    if mask.dtype != torch.bool:
        return cast(Tensor, mask.to(like.dtype))
    return torch.zeros(mask.shape, dtype=like.dtype, device=mask.device).masked_fill(mask, -torch.inf)
