"""How far a minimum moves when the loss is shifted, against its curvature."""
