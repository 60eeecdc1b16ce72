"""x to z and back."""
