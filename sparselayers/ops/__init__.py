"""Floor 0: pure tensor functions."""
