"""Full runs as typed values: what, where, how long, and the number to expect."""
