"""A pipeline whose weights are stored channels last makes the same pictures."""

import torch


def test_channels_last_makes_the_same_pictures(latent):
    call = {
        "class_labels": ["cat", "owl"],
        "seed": 3,
        "num_inference_steps": 4,
        "guidance_scale": 2,
        "output_type": "pt",
    }
    before = latent(**call).images
    assert latent.to(memory_format=torch.channels_last) is latent
    for kernel in (latent.unet.conv_in.weight, latent.vae.decoder.conv_in.weight):
        assert kernel.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(latent(**call).images, before, atol=1e-5, rtol=1e-5)
