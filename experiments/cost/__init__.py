"""What teleports, learned rules and meta-training cost."""
