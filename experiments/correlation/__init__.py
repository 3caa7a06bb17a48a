"""Sharpness and curvature at the end of training, beside the test loss."""
