"""How to move."""
