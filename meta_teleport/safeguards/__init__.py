"""What keeps teleports from doing harm to a training."""
