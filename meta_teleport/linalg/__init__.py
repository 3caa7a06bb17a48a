"""Linear algebra that does not depend on the rest: exponentials, logarithms, inverses."""
