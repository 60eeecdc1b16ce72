"""The one loop, its objectives, checkpoints and averages."""
