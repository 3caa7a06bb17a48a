"""Gauges for low-rank factors, by hand and learned."""
