"""Pictures moved a little, a whole batch at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def jitter(images: Tensor, degrees: float = 12.0, pixels: float = 2.0, scale: float = 0.12) -> Tensor:
    """(n, 1, h, w): each turned, scaled, sheared and shifted by its own small amounts; the border goes on outside."""
    turn, size, shear, right, down = (2 * torch.rand(5, len(images), device=images.device) - 1).unbind()
    turn, size = turn * math.radians(degrees), 1 + size * scale
    shear = shear * scale
    right, down = right * 2 * pixels / images.shape[-1], down * 2 * pixels / images.shape[-2]
    cos, sin = size * turn.cos(), size * turn.sin()
    across = torch.stack([cos, shear * cos - sin, right], 1)
    along = torch.stack([sin, shear * sin + cos, down], 1)
    grid = affine_grid(torch.stack([across, along], 1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, padding_mode="border", align_corners=False)
