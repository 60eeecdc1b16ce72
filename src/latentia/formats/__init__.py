"""Other projects' checkpoints: recognised by their keys, converted by tables."""
