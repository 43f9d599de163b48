"""Operations without weights, by name, and whether a function, method or layer is one of a kind."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .trace import Traced


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Entry by entry: what comes out at a place depends on what comes in at that place.
POINTWISE = _words(
    """
    abs absolute acos acosh add alpha_dropout arctan asin asinh atan atanh bfloat16 ceil celu clamp clamp_max clamp_min
    clip clone contiguous cos cosh detach div divide double dropout dropout1d dropout2d dropout3d elu erf erfc exp exp2
    expm1 feature_alpha_dropout float floor gelu half hardshrink hardsigmoid hardswish hardtanh iadd imul isub itruediv
    leaky_relu log log10 log1p log2 log_sigmoid logsigmoid maximum minimum mish mul multiply neg negative pos positive
    pow reciprocal relu relu6 round rrelu rsqrt rsub selu sgn sigmoid sign silu sin sinh softplus softshrink softsign
    sqrt square sub subtract tan tanh tanhshrink threshold to true_divide truediv trunc type
    """
)
RANDOM = {"alpha_dropout", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout", "rrelu"}
VIEWS = {
    "bfloat16",
    "contiguous",
    "detach",
    "double",
    "float",
    "half",
    "pos",
    "positive",
    "to",
    "type",
}  # of the same memory, some
PRODUCTS = {"mul", "multiply", "imul"}
QUOTIENTS = {"div", "divide", "itruediv", "true_divide", "truediv"}
POINTWISE_LAYERS = (
    *(nn.AlphaDropout, nn.CELU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ELU, nn.FeatureAlphaDropout),
    *(nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.LogSigmoid),
    *(nn.Mish, nn.RReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign),
    *(nn.Tanh, nn.Tanhshrink, nn.Threshold),
)

# Entries go elsewhere, none is changed.
MOVES = _words(
    """
    broadcast_to cat channel_shuffle chunk concat concatenate expand flatten flip getitem moveaxis movedim narrow
    native_channel_shuffle permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape roll select
    split squeeze stack swapaxes swapdims t tensor_split tile transpose unbind unflatten unsqueeze view
    """
)
MOVE_LAYERS = (nn.ChannelShuffle, nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unflatten)

# A channel at a time, over the last axes: how many of them (None: see `window_axes`).
WINDOWS = {
    **{f"{name}{k}d": k for k in (1, 2, 3) for name in ("adaptive_avg_pool", "avg_pool", "lp_pool")},
    **{f"{name}{k}d": k for k in (1, 2, 3) for name in ("adaptive_max_pool", "max_pool")},
    **dict.fromkeys(("interpolate", "upsample", "pad")),
}
WINDOW_LAYERS = {
    **{
        getattr(nn, f"{name}{k}d"): k
        for k in (1, 2, 3)
        for name in ("AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "MaxPool", "LPPool", "ZeroPad", "ConstantPad")
    },
    **{getattr(nn, f"{name}Pad{k}d"): k for k in (1, 2, 3) for name in ("Reflection", "Replication", "Circular")},
    nn.Upsample: None,
    nn.UpsamplingBilinear2d: 2,
    nn.UpsamplingNearest2d: 2,
}

# Over the axes that `dim` names.
MEANS = frozenset({"mean", "amax", "amin"})

# What asks for the shape or the kind of a tensor, not for its entries.
SHAPE_READS = {"size", "dim", "ndimension", "numel", "nelement", "getattr", "is_floating_point", "len", "stride"}


def name_of(node: fx.Node) -> str | None:
    """The name of a function of torch, a method of Tensor or an operator, without the _ of one in place."""
    if node.op == "call_method":
        name = str(node.target)
        return name.rstrip("_") if hasattr(Tensor, name) else None
    if node.op != "call_function":
        return None
    if node.target is getattr:
        return "getattr" if node.args[1] in ("shape", "ndim", "dtype", "device", "is_cuda") else None
    if node.target is len:
        return "len"
    name = getattr(node.target, "__name__", "")
    homes = (torch, F, operator, torch._C._nn)
    known = any(getattr(home, name, None) is node.target for home in homes)
    return name.rstrip("_") if known else None


def in_place(node: fx.Node, traced: Traced) -> bool:
    """Whether the operation writes into its first argument."""
    if node.op == "call_module":
        return bool(getattr(traced.layer(node), "inplace", False))
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    operators = ("iadd", "isub", "imul", "itruediv")
    return name.endswith("_") or bool(node.kwargs.get("inplace")) or name in operators or "out" in node.kwargs


def makes_anew(node: fx.Node, traced: Traced) -> bool:
    """Whether the result is certainly in memory of its own."""
    if node.op == "call_module":
        layer = traced.layer(node)
        passed = (*MOVE_LAYERS, nn.Identity, nn.modules.dropout._DropoutNd)
        return type(layer).__module__.startswith("torch.nn.modules.") and not isinstance(layer, passed)
    name = name_of(node)
    return name in MEANS or (name in POINTWISE and name not in RANDOM | VIEWS)


def window_axes(node: fx.Node, traced: Traced) -> int | None:
    """How many of the last axes an operation of WINDOWS works over; None where it is none, or not sure."""
    if node.op == "call_module":
        kind = type(traced.layer(node))
        name, axes = "", WINDOW_LAYERS.get(kind, 0)
    else:
        name = name_of(node) or ""
        axes = WINDOWS.get(name, 0)
    shape = traced.shape(node)
    if name == "pad":
        by = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
        return len(by) // 2 if isinstance(by, (list, tuple)) else None
    return len(shape) - 2 if axes is None and shape is not None else axes or None


def is_random(node: fx.Node, name: str) -> bool:
    """A dropout that is not certainly in evaluation mode."""
    if name not in RANDOM:
        return False
    place = {"rrelu": 3}.get(name, 2)
    training = node.kwargs.get("training", node.args[place] if len(node.args) > place else name != "rrelu")
    return training is not False


def computes(value: object) -> bool:
    """Whether a value of a graph is a number, which may be another one for other inputs: a size, a sum of entries."""
    return any(isinstance(leaf, (int, float)) for leaf in tree_leaves(value))


def otherwise(value: object) -> object:
    """Another number in the place of one."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return 2 * value + 1
    return value


def run(node: fx.Node, traced: Traced, value: Callable, arguments: tuple[tuple, dict] | None = None) -> object:
    """The node's own operation, with value(n) in the place of each node n that it takes, on other arguments if given."""
    args, kwargs = fx.node.map_arg(arguments or (node.args, node.kwargs), value)
    if node.op == "call_module":
        return traced.layer(node)(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)
