"""One thread a test process: tiny tensors gain nothing from more, and processes side by side lose much."""

import torch

torch.set_num_threads(1)
