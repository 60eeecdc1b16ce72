"""z to tokens and back."""
