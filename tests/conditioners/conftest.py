"""transformers keeps its progress bars to itself while the text encoders are compared with it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def quiet_transformers():
    import transformers

    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
