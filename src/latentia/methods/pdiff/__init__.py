"""p-diff: the weights of neural networks as data, their generator, and the controls that say whether it means anything.

Source: K. Wang, Z. Xu, Y. Zhou, Z. Zang, T. Darrell, Z. Liu, Y. You, "Neural Network Diffusion", arXiv 2402.13144.
"""
