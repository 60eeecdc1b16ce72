"""Bricks: blocks of networks that know nothing of diffusion."""
