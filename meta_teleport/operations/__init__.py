"""What tensor operations mean for the units of a network."""
