"""Print the transform matrix, operator x transform: python -m tests.matrix [part of a name]"""

from __future__ import annotations

import sys
import warnings

from .properties import TRANSFORMS
from .registry import OPERATORS


def main(part: str = "") -> int:
    warnings.simplefilter("ignore")
    chosen = [operator for operator in OPERATORS if part in operator.name]
    width = max(len(operator.name) for operator in chosen)
    print("operator".ljust(width), *TRANSFORMS, sep=" | ")
    failures = 0
    for operator in chosen:
        cells = []
        for name, check in TRANSFORMS.items():
            try:
                check(operator)
                cells.append("ok".ljust(len(name)))
            except Exception as error:  # a matrix shows whatever happened
                failures += 1
                cells.append(type(error).__name__[: len(name)].ljust(len(name)))
        print(operator.name.ljust(width), *cells, sep=" | ", flush=True)
    print(f"{len(chosen)} operators x {len(TRANSFORMS)} transforms: {failures} failures")
    return failures


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
