"""The paper's learned optimizers on its own problems."""
