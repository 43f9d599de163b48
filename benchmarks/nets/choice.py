"""One rule for all tables: the strength is chosen on the held-out part, never on the test set."""

from __future__ import annotations

from .record import Record


def most(rows: list[Record], by: str, gain: str, bound: float) -> list[Record]:
    """Of each value of `by` the row with the largest `gain` among those whose held-out error is at most `bound`."""
    allowed = [row for row in rows if row["held-out error %"] <= bound]
    names = dict.fromkeys(row[by] for row in allowed)
    return [max((row for row in allowed if row[by] == name), key=lambda row: row[gain]) for name in names]
