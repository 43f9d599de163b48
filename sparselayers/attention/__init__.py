"""Floor 3: attention."""
