"""The engine of `compact`: which channels of a traced model can go, and the cuts that remove them."""
