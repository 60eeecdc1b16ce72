"""How much of an edit arrived and how much of the picture stayed, each number with the extractor in its name."""
