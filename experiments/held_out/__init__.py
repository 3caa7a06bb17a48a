"""The equivariant rule on held-out tasks, family by family."""
