"""Stateless functions, in the manner of torch.nn.functional."""

from .attention.affine import affine_least_squares
from .attention.dot_product import scaled_dot_product_attention
from .attention.scale_free import scale_free_attention
from .attention.simplex import SimplexResult, simplex_least_squares
from .coding.ista import fista, ista
from .coding.lasso import LassoResult, lasso
from .coding.rate import analytic_rate
from .coding.ridge import ridge
from .coding.subgradient import subgradient_descent
from .coding.target import TargetResult, lasso_target_k
from .mappings.budget import project_budget, topk_simplex
from .mappings.entmax import entmax
from .mappings.losses import entmax15_loss, fenchel_young_loss, sparsemax_loss
from .mappings.simplex import entmax15, sparsemax
from .ops.cges import cges_linearized_step, cges_mu
from .ops.project import exclusive_threshold, project_l1_ball, project_simplex
from .ops.rows import Thresholded
from .ops.shrink import group_soft_threshold, hard_threshold, sigshrink, soft_threshold, ssbs
from .ops.spectral import analytic_weight

__all__ = [
    "LassoResult",
    "SimplexResult",
    "TargetResult",
    "Thresholded",
    "analytic_rate",
    "affine_least_squares",
    "analytic_weight",
    "cges_linearized_step",
    "cges_mu",
    "entmax",
    "entmax15",
    "entmax15_loss",
    "exclusive_threshold",
    "fenchel_young_loss",
    "fista",
    "group_soft_threshold",
    "hard_threshold",
    "ista",
    "lasso",
    "lasso_target_k",
    "project_budget",
    "project_l1_ball",
    "project_simplex",
    "ridge",
    "scale_free_attention",
    "scaled_dot_product_attention",
    "sigshrink",
    "simplex_least_squares",
    "soft_threshold",
    "sparsemax",
    "sparsemax_loss",
    "ssbs",
    "subgradient_descent",
    "topk_simplex",
]
