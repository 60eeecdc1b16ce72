"""The codec of whole networks: PCA at the start, trained on what networks do."""

import pytest
import torch

from latentia import DDIMScheduler
from latentia.denoisers.unet_1d import UNet1D
from latentia.errors import ConfigError, InputError
from latentia.methods.pdiff.controls import pca_gaussian
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.networks import MLP3, ResNetDigits
from latentia.methods.pdiff.normalise import Standardiser, Whitener
from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
from latentia.methods.pdiff.template import ParameterTemplate
from latentia.methods.pdiff.token_codec import BehaviourObjective, ParameterTokenCodec

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def some(build, count):
    torch.manual_seed(0)
    networks = [build() for _ in range(count)]
    layout = ParameterLayout.select(networks[0], "*")
    return networks[0], layout, layout.flatten_many(networks)


def mlp():
    return MLP3(hidden=(6, 5))


def codec_of(layout, rank=3, **options):
    return ParameterTokenCodec(layout.shapes, rank, token_size=32, width=16, num_layers=1, **options)


def test_all_components_rebuild_exactly():
    _, layout, vectors = some(mlp, 5)
    codec = codec_of(layout, 4)
    z = codec.fit(vectors)
    assert torch.allclose(codec.from_latents(z), vectors, atol=1e-4)  # the transformer is 0 at first
    assert torch.allclose(codec.to_latents(vectors), z, atol=1e-3)


def test_codes_are_white_and_components_orthogonal_by_size():
    _, layout, vectors = some(mlp, 9)
    codec = codec_of(layout, 4)
    z = codec.fit(vectors).squeeze(2)
    assert torch.allclose(z.T @ z / 8, torch.eye(4), atol=1e-4)
    gram = codec.basis @ codec.basis.T
    assert torch.allclose(gram, gram.diag().diag(), atol=1e-3 * float(gram.max()))
    assert (gram.diag().diff() <= 0).all()


def test_at_first_it_is_the_pca_control():
    _, layout, vectors = some(mlp, 6)
    codec = codec_of(layout, 5)
    codec.fit(vectors)
    torch.manual_seed(0)
    drawn = codec.from_latents(torch.randn(4000, 5, 1))
    control = pca_gaussian(vectors, 4000, torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.var(0).sum(), control.var(0).sum(), rtol=0.05)
    assert torch.allclose(drawn.mean(0), control.mean(0), atol=0.05)


def test_a_tensor_that_does_not_vary():
    _, layout, vectors = some(mlp, 4)
    layout.unflatten(vectors)["linear3.bias"][:] = 0.5
    codec = codec_of(layout, 3)
    rebuilt = codec.from_latents(codec.fit(vectors))
    assert torch.allclose(rebuilt, vectors, atol=1e-4)


@pytest.mark.parametrize("build", [mlp, lambda: ResNetDigits(width=2, blocks=(1,))])
def test_behaviour_is_learnt(build):
    network, layout, vectors = some(build, 8)
    vectors = vectors * 2
    codec = codec_of(layout, 3)
    codec.fit(vectors)
    objective = BehaviourObjective(codec, network, layout, network.state_dict(), IMAGES, noise=0.1, num_images=16)
    assert set(objective.modules_by_name) == {"codec"}
    objective.train()
    optimizer = torch.optim.AdamW(codec.refiner.parameters(), lr=5e-3)
    seen = []
    for _ in range(40):
        loss = objective({"x": vectors})
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        seen.append(float(loss.parts["behaviour"]))
    assert sum(seen[-5:]) < 0.8 * sum(seen[:5])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_perfect_decoding_has_no_loss():
    network, layout, vectors = some(mlp, 4)
    codec = codec_of(layout, 3)
    codec.fit(vectors)
    objective = BehaviourObjective(codec, network, layout, network.state_dict(), IMAGES, noise=0.0, pure=1.0)
    loss = objective({"x": vectors})
    assert float(loss.total.detach()) == pytest.approx(0, abs=1e-5)
    assert float(loss.parts["correction"]) == 0


def test_saved_and_loaded(tmp_path):
    _, layout, vectors = some(mlp, 5)
    codec = codec_of(layout, 2).eval()
    z = codec.fit(vectors)
    torch.nn.init.normal_(codec.refiner.out_proj.weight)
    codec.save_pretrained(tmp_path)
    loaded = ParameterTokenCodec.from_pretrained(tmp_path)
    assert torch.equal(loaded.from_latents(z), codec.from_latents(z))


def test_the_face_of_codecs():
    _, layout, _ = some(mlp, 1)
    codec = codec_of(layout, 3)
    assert codec.latent_shape((layout.size,)) == (3, 1)
    assert codec.bits_per_element() == 16
    with pytest.raises(InputError, match="does not fit"):
        codec.latent_shape((layout.size + 1,))


def test_it_stands_in_the_pipeline_of_all_codecs():
    network, layout, vectors = some(mlp, 6)
    codec = codec_of(layout, 4).eval()
    z = codec.fit(vectors)
    torch.manual_seed(1)
    torch.nn.init.normal_(codec.refiner.out_proj.weight, std=0.1)
    standardiser = Standardiser(layout.size, "none")
    template = ParameterTemplate.of(layout, network.state_dict(), standardiser, Whitener.fit(z, "coordinate"))
    unet = UNet1D(1, 4, 4, block_out_channels=(16,), kernel_size=1, downsample=False).eval()
    pipe = ParameterDiffusionPipeline(codec, unet, DDIMScheduler(), template)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(num_samples=3, seed=0, num_inference_steps=4)
    assert made.vectors.shape == (3, layout.size)
    assert torch.allclose(pipe.decode(pipe.encode(vectors)), codec.decode_all(codec.encode_all(vectors)), atol=1e-4)
    network.load_state_dict(made.state_dicts[1])


def test_bad_input():
    network, layout, vectors = some(mlp, 3)
    codec = codec_of(layout, 3)
    with pytest.raises(InputError, match="at least 4 networks, got 3"):
        codec.fit(vectors)
    with pytest.raises(InputError, match="expected networks"):
        codec.fit(vectors[:, 1:])
    with pytest.raises(InputError, match=r"codes \(B, 3, 1\)"):
        codec.from_latents(torch.zeros(2, 3))
    other = ParameterLayout.select(network, "linear1")
    with pytest.raises(InputError, match="different networks"):
        BehaviourObjective(codec, network, other, network.state_dict(), IMAGES)
    with pytest.raises(InputError, match="pure"):
        BehaviourObjective(codec, network, layout, network.state_dict(), IMAGES, pure=1.5)


def test_what_is_not_told_stays_in_part_in_the_weights():
    torch.manual_seed(0)
    vectors = torch.randn(6, 20)
    codec = ParameterTokenCodec(((4, 5),), num_codes=5, token_size=8, width=8, num_told=2, rest=0.25)
    codes = codec.fit(vectors)
    told = codes * torch.tensor([1.0, 1, 0, 0, 0])[:, None]
    expected = codec.decode_linear(told) + 0.25 * (vectors - codec.decode_linear(told))
    torch.testing.assert_close(codec.from_latents(codes), expected)  # an untrained transformer adds nothing
    torch.testing.assert_close(codec.to_latents(vectors), codes, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match="num_told=6 is more than num_codes=5"):
        ParameterTokenCodec(((4, 5),), num_codes=5, token_size=8, width=8, num_told=6)
