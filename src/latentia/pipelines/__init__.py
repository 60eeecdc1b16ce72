"""The one sampling loop and the callables around it."""
