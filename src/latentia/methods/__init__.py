"""Rooms: what is unique to one paper, and only that."""
