"""Speed against Diffusers on the same weights: every number is a ratio measured in one run."""
