"""One thread a test process: tiny tensors gain nothing from more, and processes side by side lose much."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
