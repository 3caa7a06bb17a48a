"""What to train on."""
