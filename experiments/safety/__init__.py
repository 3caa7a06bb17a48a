"""What teleports do to trainings of thousands of steps that go well without them."""
