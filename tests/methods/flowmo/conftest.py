"""A FlowMo of a few thousand weights."""

import pytest
import torch

from latentia.methods.flowmo.codecs import ContinuousFlowMo, FlowMo

TINY = {
    "image_size": 8,
    "in_channels": 1,
    "patch_size": 4,
    "code_length": 4,
    "code_dim": 6,
    "encoder_width": 16,
    "encoder_depth": 2,
    "encoder_heads": 2,
    "decoder_width": 32,
    "decoder_depth": 2,
    "decoder_heads": 2,
}
BITS = {"quantizer_options": {"group_bits": 3}}


@pytest.fixture
def tiny():
    """`tiny(**changes)` → a FlowMo whose weights are all alive (new ones have closed gates)."""

    def make(alive=True, seed=0, continuous=False, **changes):
        torch.manual_seed(seed)
        model = ContinuousFlowMo(**{**TINY, **changes}) if continuous else FlowMo(**{**TINY, **BITS, **changes})
        if alive:
            for p in model.parameters():
                if p.ndim > 1:
                    torch.nn.init.normal_(p, std=0.2)
        return model

    return make
