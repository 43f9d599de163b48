"""The kernels are modules of their own, imported only where their compiler is installed: so are their doctests."""

import importlib.util

collect_ignore_glob = [
    f"sparselayers/ops/kernels/{package}_*.py"
    for package in ("numba", "triton")
    if not importlib.util.find_spec(package)
]
