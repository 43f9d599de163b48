"""Every operator through every transform."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .properties import TRANSFORMS
from .registry import OPERATORS, Operator


@pytest.mark.parametrize("check", TRANSFORMS.values(), ids=TRANSFORMS.keys())
@pytest.mark.parametrize("operator", OPERATORS, ids=str)
def test_transform(operator: Operator, check: Callable[[Operator], None]) -> None:
    check(operator)
