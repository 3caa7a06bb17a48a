"""A teleport before the inner loop of MAML."""
