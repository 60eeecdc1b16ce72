"""Training losses over tensors."""
