"""What the paper proves, on problems with known answers."""
