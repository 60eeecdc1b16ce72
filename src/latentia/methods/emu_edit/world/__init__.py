"""`scenes`: a small world that can be drawn exactly, so that every edit in it has one right answer."""
