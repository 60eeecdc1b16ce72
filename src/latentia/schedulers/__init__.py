"""Noise: how much of it at which time, and how to step back."""
