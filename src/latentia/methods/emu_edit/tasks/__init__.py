"""The sixteen tasks of Emu Edit in their three groups; see `registry.py`."""
