"""A model as graphs of tensor operations, in every setting that it runs in."""
