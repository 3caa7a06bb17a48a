"""One rule for networks of every size, from invariants and Gram matrices."""
