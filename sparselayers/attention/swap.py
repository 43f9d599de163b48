"""Replace the attention of a model in place, and put it back."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from .dot_product import Mapping, check_mapping
from .multihead import MultiheadAttention

NESTED_BEFORE = "_use_nested_tensor_before_swap"


def swap_attention(model: nn.Module, mapping: Mapping = "sparsemax") -> int:
    r"""Give every nn.MultiheadAttention in a model another mapping in the place of softmax, in place.

    softmax(Q K^T / sqrt(d)) V  becomes  mapping(Q K^T / sqrt(d)) V

    Each module stays the object it is, with the same Parameters, hooks, device, dtype and training flag, and becomes a
    `MultiheadAttention`: an optimizer made before goes on. torch's fused inference path and the nested tensors of
    nn.TransformerEncoder, which would go past the mapping, are off until `restore_attention`.

    Args:
        model: any module, an nn.MultiheadAttention too. Other subclasses of nn.MultiheadAttention are left alone.
        mapping: as for `MultiheadAttention`. One nn.Module is shared by all; its parameters are new to an optimizer made
            before. For one mapping a layer, call this on each layer.

    Returns: how many modules now have the mapping, each counted once, those that had been swapped before too.

    Raises: ValueError for an unknown mapping; TypeError for a mapping that cannot be called or a model that is no module.

    When not to use: to make a trained model sparse without training it further: measure first what changes. Not after
        fully_shard, which changes the class of modules itself.

    >>> import torch, sparselayers as sl
    >>> model = torch.nn.Transformer(16, 2, 2, 2, 32, batch_first=True)
    >>> sl.swap_attention(model, "entmax15")
    6
    """
    _check_module(model)
    check_mapping(mapping)
    swapped = 0
    for module in list(model.modules()):
        _recast(module, nn.MultiheadAttention, MultiheadAttention)
        if isinstance(module, MultiheadAttention):
            module.set_mapping(mapping)
            swapped += 1
    for encoder in _encoders(model):
        if encoder.use_nested_tensor and any(_is_swapped(layer) for layer in encoder.layers):
            setattr(encoder, NESTED_BEFORE, encoder.use_nested_tensor)
            encoder.use_nested_tensor = False
    return swapped


def restore_attention(model: nn.Module) -> int:
    r"""Undo `swap_attention`: every `MultiheadAttention` in a model becomes an nn.MultiheadAttention again, in place.

    mapping(Q K^T / sqrt(d)) V  becomes  softmax(Q K^T / sqrt(d)) V

    Weights stay as they are now; torch's fused inference path and nested tensors are on again where they were. A
    `MultiheadAttention` that was built as such becomes an nn.MultiheadAttention too.

    Args:
        model: any module.

    Returns: how many modules were restored, each counted once.

    Raises: TypeError for a model that is no module.

    When not to use: on a model trained with a sparse mapping, but to measure what the mapping does.

    >>> import torch, sparselayers as sl
    >>> model = torch.nn.TransformerDecoderLayer(16, 2)
    >>> sl.swap_attention(model), sl.restore_attention(model), sl.restore_attention(model)
    (2, 2, 0)
    """
    _check_module(model)
    restored = 0
    for module in list(model.modules()):
        if _recast(module, MultiheadAttention, nn.MultiheadAttention):
            del module.mapping
            vars(module)["_qkv_same_embed_dim"] = module.q_proj_weight is None
            restored += 1
    for encoder in _encoders(model):
        if hasattr(encoder, NESTED_BEFORE) and not any(_is_swapped(layer) for layer in encoder.layers):
            encoder.use_nested_tensor = getattr(encoder, NESTED_BEFORE)
            delattr(encoder, NESTED_BEFORE)
    return restored


def _recast(module: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> bool:
    """Make an `old` into a `new`, the same object; torch's parametrize has put a class of its own in between."""
    cls = type(module)
    if cls is old:
        module.__class__ = new
    elif parametrize.is_parametrized(module) and cls.__bases__ == (old,):
        body = {name: thing for name, thing in vars(cls).items() if name not in ("__dict__", "__weakref__")}
        module.__class__ = type(cls.__name__, (new,), body)
    else:
        return False
    return True


def _encoders(model: nn.Module) -> list[nn.TransformerEncoder]:
    return [module for module in model.modules() if isinstance(module, nn.TransformerEncoder)]


def _is_swapped(layer: nn.Module) -> bool:
    return isinstance(getattr(layer, "self_attn", None), MultiheadAttention)


def _check_module(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
