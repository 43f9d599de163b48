"""Floor 3: sparse coding layers."""
