"""Linear algebra that does not depend on the rest: decompositions, exponentials, logarithms, inverses."""
