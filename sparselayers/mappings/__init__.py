"""Floor 2: maps from scores to sparse probabilities, and shrinkage modules."""
