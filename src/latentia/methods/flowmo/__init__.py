"""FlowMo (Sargent et al. 2025): a diffusion autoencoder that writes a picture as a short 1-D binary code."""
