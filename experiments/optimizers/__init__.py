"""Optimizers with teleports on images."""
