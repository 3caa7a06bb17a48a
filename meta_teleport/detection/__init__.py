"""Which symmetries a model has, read from its graph."""
