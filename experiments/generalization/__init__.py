"""Teleports to flatter or more curved places of the orbit, and the test loss after them."""
