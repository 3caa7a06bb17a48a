"""Teleports on convolutional networks, residual networks and transformers."""
