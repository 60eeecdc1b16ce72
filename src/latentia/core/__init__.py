"""Words every floor speaks: recorded configs, artifacts on disk, randomness, outputs, protocols."""
