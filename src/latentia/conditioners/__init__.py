"""What the denoiser is told: text, encoded."""
