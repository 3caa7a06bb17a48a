"""Teleports between the steps of an optimizer: when, and what becomes of its state."""
