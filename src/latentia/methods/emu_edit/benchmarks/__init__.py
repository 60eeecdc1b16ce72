"""Sets of edits that others are judged on: the Emu Edit test set, MagicBrush, and the scenes."""
