"""The squared norm of a strided convolution z -> D z, from above: the Lipschitz constant of z -> D^T (D z - x)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .norm import upcast

FINENESS = (
    16  # grid points per degree of the symbol: the grid misses its maximum by at most 1 - cos(pi/16), 2 % an axis
)
SQUARINGS = 8  # a Schatten norm of order 256: at most n^(1/256) above the largest eigenvalue, 2 % for n = 256
MOST_WORK = 2**31  # multiplications up to which the bound is certified, about 0.1 s of one core
POWER_STEPS = 50
POWER_MARGIN = 1.1


def conv_squared_norm(weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    r"""An upper bound of ‖D‖_2² for D z = conv_transpose(z, weight, stride), for every input size and padding.

    Cropping, which padding amounts to, only lowers the norm, and so does a finite input: the norm of D on all of Z^d is
    the largest singular value of its symbol, the Fourier transform of the weight's polyphase parts, over all frequencies.
    That maximum is bounded by three steps that never err below: a grid of frequencies, an inequality for trigonometric
    polynomials between the grid points, and a Schatten norm in the place of the largest eigenvalue. It is about 2 % too
    large an axis. Where that takes more than 2^31 multiplications (64 channels and 3 x 3 taps, say) the value is an
    ESTIMATE: 50 steps of power iteration, raised by 10 %.

    All derivatives are those of the bound, at its frequency held fixed.

    Args:
        weight: (n_atoms, channels, *kernel).
        stride: one number an axis of the kernel.

    Returns: (), in at least 32 bits; 0 for a zero weight, NaN for one that holds NaN or inf.

    Source: Ehlich and Zeller, Math. Z. 86, 1964 (between the grid points).

    >>> import torch
    >>> from sparselayers.ops.conv_norm import conv_squared_norm
    >>> conv_squared_norm(torch.tensor([[[3.0]], [[4.0]]]), (1,))
    tensor(25.)
    """
    wide = upcast(weight)
    largest = wide.detach().abs().amax()
    scale = torch.where(largest > 0, largest, 1)
    correlation = _correlation(polyphase(wide / scale, stride))
    degrees = tuple((taps - 1) // 2 for taps in correlation.shape[2:])
    table = _frequencies(degrees, correlation)
    n = 2 * correlation.shape[0]
    if table.shape[0] * n**3 * SQUARINGS <= MOST_WORK:
        between = (1 / math.cos(math.pi / FINENESS)) ** sum([degree > 0 for degree in degrees])
        worst = _schatten(_symbol(correlation.detach(), table)).argmax(0, keepdim=True)
        bound = between * _schatten(_symbol(correlation, table[worst])).squeeze(0)
    else:
        bound = POWER_MARGIN * _power(correlation, degrees)
    return torch.where(largest.isfinite(), bound * scale.square(), torch.nan)


def polyphase(weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    """The weight (n_atoms, channels, *kernel) as one of stride 1: (channels * prod(stride), n_atoms, *ceil(kernel/stride))."""
    n_atoms, channels, *kernel = weight.shape
    taps = [-(-k // s) for k, s in zip(kernel, stride, strict=True)]
    short = [(0, t * s - k) for t, s, k in zip(taps, stride, kernel, strict=True)]
    padded = torch.nn.functional.pad(weight, [pad for axis in reversed(short) for pad in axis])
    split = padded.reshape(n_atoms, channels, *[size for pair in zip(taps, stride, strict=True) for size in pair])
    dims = len(kernel)
    within, across = [3 + 2 * axis for axis in range(dims)], [2 + 2 * axis for axis in range(dims)]
    return split.permute(1, *within, 0, *across).reshape(channels * math.prod(stride), n_atoms, *taps)


def _correlation(E: Tensor) -> Tensor:
    """R[r] = sum_q E[q + r] E[q]^T, of the smaller side: (n, n, *(2 taps - 1)); the symbol of D D^T or D^T D."""
    E = E if E.shape[0] <= E.shape[1] else E.transpose(0, 1)
    conv = torch.nn.functional.conv1d if E.ndim == 3 else torch.nn.functional.conv2d
    return conv(E, E, padding=[taps - 1 for taps in E.shape[2:]])


def _frequencies(degrees: tuple[int, ...], like: Tensor) -> Tensor:
    """w . r for each frequency of the grid and each tap r: (frequencies, taps). Half a grid: the rest is conjugate."""
    points = [FINENESS * degree or 1 for degree in degrees]
    grid = [range(n) for n in points[:-1]] + [range(points[-1] // 2 + 1)]
    frequencies = [
        torch.arange(len(part), dtype=torch.float64, device=like.device) * (2 * math.pi / n)
        for part, n in zip(grid, points, strict=True)
    ]
    taps = [torch.arange(-degree, degree + 1, dtype=torch.float64, device=like.device) for degree in degrees]
    w, r = (torch.cartesian_prod(*axes).reshape(-1, len(degrees)) for axes in (frequencies, taps))
    return (w @ r.mT).to(like.dtype)


def _symbol(correlation: Tensor, table: Tensor) -> Tensor:
    """sum_r R[r] e^(-i w r) as a real matrix [[Re, -Im], [Im, Re]]: (frequencies, 2n, 2n). Every eigenvalue comes twice."""
    flat = correlation.flatten(2).movedim(-1, 0).flatten(1)
    shape = (table.shape[0], *correlation.shape[:2])
    real, imaginary = (table.cos() @ flat).view(shape), -(table.sin() @ flat).view(shape)
    return torch.cat([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)


def _schatten(G: Tensor) -> Tensor:
    """(1/2 trace G^256)^(1/256) of each matrix, at least its largest eigenvalue; the trace counts every one twice."""
    log_norm, power = torch.zeros_like(G[:, 0, 0]), 1.0
    for _ in range(SQUARINGS):
        trace = G.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
        trace = torch.where(trace > 0, trace, 1)
        log_norm, G = log_norm + power * trace.log(), G / trace[:, None, None]
        G, power = G @ G, power / 2
    trace = G.diagonal(dim1=-2, dim2=-1).sum(-1) / 2
    zero = trace <= 0
    return torch.where(zero, 0, (log_norm + power * torch.where(zero, 1, trace).log()).exp())


def _power(correlation: Tensor, degrees: tuple[int, ...]) -> Tensor:
    """The largest eigenvalue of the convolution with R on a periodic grid of 8 points a degree, nearly."""
    conv = torch.nn.functional.conv1d if len(degrees) == 1 else torch.nn.functional.conv2d
    wrap = [degree for degree in reversed(degrees) for _ in range(2)]
    fixed = correlation.detach()

    def apply(u: Tensor, kernel: Tensor) -> Tensor:
        return conv(torch.nn.functional.pad(u, wrap, mode="circular"), kernel)

    shape = (1, correlation.shape[0], *(8 * degree or 1 for degree in degrees))
    u = torch.arange(math.prod(shape), dtype=fixed.dtype, device=fixed.device).square().cos().view(shape)
    for _ in range(POWER_STEPS):
        u = apply(u, fixed)
        u = u / torch.linalg.vector_norm(u).clamp_min(torch.finfo(u.dtype).tiny)
    return (u * apply(u, correlation)).sum()
