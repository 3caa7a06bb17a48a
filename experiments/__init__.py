"""What is claimed of the package and the paper, measured: one folder per claim."""
