"""Which transformations leave the loss alone."""
