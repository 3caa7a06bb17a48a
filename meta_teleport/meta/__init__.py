"""How to learn to move."""
