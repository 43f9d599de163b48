"""Floor 3: sparse weights."""
