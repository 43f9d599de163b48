"""Sparse attention under a name that models of the transformers library understand."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import masks
from ..attention.dot_product import Mapping
from ..attention.weights import attend

NAMES: dict[str, Mapping] = {
    "sparsemax": "sparsemax",
    "entmax15": "entmax15",
    "scale_free": "scale_free",
    "sparse_softmax_check": "softmax",
}

# What changes the weights and has no counterpart here: refused, as to leave it out would be another model.
REFUSED = {
    "softcap": "scores capped by tanh",
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "indices": "a selection of keys",
    "block_indices": "a selection of blocks of keys",
    "head_mask": "a factor a head",
    "cache": "a paged cache",
    "cu_seq_lens_q": "packed sequences by their lengths (position_ids say the same without them)",
    "cu_seq_lens_k": "packed sequences by their lengths (position_ids say the same without them)",
}


def register() -> None:
    """Make `attn_implementation="sparsemax"`, "entmax15" and "scale_free" known to transformers, with their masks.

    mapping(scaling Q K^T + mask) V, in every model of transformers that looks its attention up by name. Each name is
    registered for the attention and for the mask: without the second, transformers makes no mask at all, and a causal model
    attends to the future. "sparse_softmax_check" is softmax by the same code, to compare with "eager". To register twice does
    no harm. "scale_free" has locality 0.1 and leaves the model's scaling out.

    Raises: ImportError where transformers is missing or too old. In a model's forward: ValueError for what a model asks of
        its attention that is not done here (sinks, capped scores, a paged cache, ...), and for a causal model without a mask.

    When not to use: with `output_attentions` on long sequences: only then the whole weights are held.

    >>> from sparselayers.integrations import transformers as integration
    >>> integration.register()  # then from_pretrained(..., attn_implementation="sparsemax")
    """
    try:
        import transformers
    except ImportError as missing:
        raise ImportError("transformers is not installed; use: python -m pip install 'transformers>=5'") from missing
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError as old:
        raise ImportError(
            f"transformers {transformers.__version__} has no AttentionMaskInterface; "
            "use: python -m pip install --upgrade 'transformers>=5'"
        ) from old
    for name, mapping in NAMES.items():
        AttentionInterface.register(name, partial(attention, mapping=mapping))
        AttentionMaskInterface.register(name, partial(_whole_mask, sdpa_mask))


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool | None = None,
    *,
    mapping: Mapping,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """The interface of transformers: query (B, H, L, D), key and value (B, Hkv, S, D) -> output (B, L, H, D), weights or None.

    `dropout` applies as given: the model passes 0 in evaluation. What else a model passes is refused if it changes the
    weights (`REFUSED`) and otherwise has its effect elsewhere, as position_ids do.
    """
    for name, meaning in REFUSED.items():
        if others.get(name) is not None:
            raise ValueError(
                f'sparse attention has no {name} ({meaning}); use attn_implementation="eager" for this model'
            )
    n_queries, n_keys = query.shape[2], key.shape[2]
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if causal and n_queries > 1:
            raise ValueError(
                f"attention_mask is None for {n_queries} queries of a causal {type(module).__name__}, which would see the "
                "future; register() gives transformers a mask function that never leaves it out: if the model makes its masks "
                "itself, pass a 4-d attention_mask, and is_causal=False where every key may be seen"
            )
        if sliding_window is not None and n_keys > sliding_window:
            raise ValueError(
                f"attention_mask is None, so that the sliding window of {sliding_window} would be lost over {n_keys} keys; "
                "pass a 4-d attention_mask"
            )
    else:
        attention_mask = attention_mask[..., :n_keys]
    if position_bias is not None:
        if mapping == "scale_free":
            raise ValueError('"scale_free" has no scores to which a position_bias could be added; use another mapping')
        attention_mask = _biased(position_bias[..., :n_keys], attention_mask)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = masks.in_dtype(attention_mask, query.dtype)
    grouped = query.shape[1] != key.shape[1]
    out, weights = attend(
        query,
        key,
        value,
        attention_mask,
        dropout,
        False,
        scaling,
        grouped,
        mapping,
        need_weights=bool(output_attentions),
    )
    return out.transpose(1, 2).contiguous(), weights


def _biased(bias: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return bias
    return torch.where(mask, bias, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _whole_mask(make: Any, *positional: Any, **named: Any) -> Tensor:
    """The boolean mask (B, 1, L, S), True = may attend, also where a model could do with a flag: None would be ambiguous."""
    return make(*positional, **{**named, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})
