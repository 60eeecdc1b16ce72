"""Networks that see a noisy z and say what is noise."""
