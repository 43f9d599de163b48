"""Floor 1: penalties, each with its value, its exact prox and its lam_max."""

from .base import Grouped, Penalty
from .group import Exclusive, GroupL0, GroupL2, LInf, SparseGroup
from .group_exclusive import GroupExclusive
from .hoyer import GroupHoyerSquare, HoyerSquare
from .latent import LatentGroupL2
from .nonconvex import MCP, SCAD, LHalf, LogSum, TransformedL1
from .nonconvex_group import GroupMCP, L1MinusL2, SparseGroupL0
from .separable import L0, L1, ElasticNet, NonnegativeL1, Ridge
from .sets import Box, L1Ball, Nonnegative, Simplex

__all__ = [
    "L0",
    "L1",
    "MCP",
    "SCAD",
    "Box",
    "ElasticNet",
    "Exclusive",
    "GroupExclusive",
    "GroupHoyerSquare",
    "GroupL0",
    "GroupL2",
    "GroupMCP",
    "Grouped",
    "HoyerSquare",
    "L1Ball",
    "L1MinusL2",
    "LHalf",
    "LInf",
    "LatentGroupL2",
    "LogSum",
    "Nonnegative",
    "NonnegativeL1",
    "Penalty",
    "Ridge",
    "Simplex",
    "SparseGroup",
    "SparseGroupL0",
    "TransformedL1",
]
