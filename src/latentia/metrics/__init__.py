"""Rulers: every number names its ruler."""
