"""What the pipelines of tokens do beyond the contract of all: the memory, guidance, windows, conditions."""

import pytest
import torch

from latentia import (
    AutoregressivePipeline,
    AutoregressiveScheduler,
    AutoregressiveTransformer,
    DDIMScheduler,
    DiffusionPipeline,
    LatentDiffusionPipeline,
    MaskedPipeline,
    MaskedScheduler,
    MaskedTransformer,
    VQModel,
)
from latentia.errors import InputError, NonFiniteError, UnknownChoiceError
from latentia.schedulers.tokens import draw, uniform

K, SHAPE = 16, (3, 4)


def codec(**arguments) -> VQModel:
    torch.manual_seed(1)
    sizes = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    made = {"block_out_channels": (4, 8), "norm_num_groups": 4, "latent_channels": 2, "num_vq_embeddings": K, **sizes}
    return VQModel(**{**made, **arguments}).eval()


def network(kind, **arguments):
    torch.manual_seed(0)
    sizes = {"num_codes": K, "token_shape": SHAPE, "width": 16, "num_layers": 2, "num_heads": 2}
    made = kind(**{**sizes, **arguments})
    for parameter in (each for each in made.parameters() if each.ndim > 1):
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval()


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def autoregressive(**arguments) -> AutoregressivePipeline:
    parts = codec(), network(AutoregressiveTransformer, **arguments), AutoregressiveScheduler(mask_token_id=K)
    return quiet(AutoregressivePipeline(*parts))


def masked(**arguments) -> MaskedPipeline:
    parts = codec(), network(MaskedTransformer, **arguments), MaskedScheduler(mask_token_id=K)
    return quiet(MaskedPipeline(*parts))


# -- the memory


@torch.no_grad()
def teacher(pipe, labels, scale: float, generators, condition=None, replaced=None) -> torch.Tensor:
    """The same tokens from whole forward passes, no memory."""
    x = torch.zeros(len(labels), 12, dtype=torch.int64)
    u = uniform((len(labels), 12), generators, torch.device("cpu"))
    for i in range(12):
        told = {} if condition is None else {"condition": condition}
        given, none = (
            pipe.transformer(x.view(-1, *SHAPE), each, **told).sample.flatten(1, 2)[:, i]
            for each in (labels, torch.full_like(labels, 3))
        )
        x[:, i] = draw(none + scale * (given - none), u[:, i])
        if replaced is not None and i == replaced[0]:
            x[:, replaced[1]] = replaced[2]
    return x.view(-1, *SHAPE)


def generators(count: int):
    return [torch.Generator().manual_seed(i) for i in range(count)]


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("condition", [None, torch.tensor([[0, 1], [2, 2]])])
def test_the_memory_gives_what_teacher_forcing_gives(scale, condition):
    more = {} if condition is None else {"condition_codes": 3, "condition_length": 2}
    pipe, labels = autoregressive(num_class_embeds=4, **more), torch.tensor([0, 2])
    told = {} if condition is None else {"condition": condition}
    call = {"class_labels": labels, "guidance_scale": scale, "output_type": "latent", **told}
    made = pipe(**call, generator=generators(2)).images
    assert torch.equal(made, teacher(pipe, labels, scale, generators(2), condition))


@pytest.mark.parametrize("in_place", [False, True])
def test_tokens_that_a_callback_replaces_are_what_follows_sees(in_place):
    pipe, labels = autoregressive(num_class_embeds=4), torch.tensor([0, 2])

    def callback(view, i, t, tensors):
        if i != 5:
            return None
        latents = tensors["latents"] if in_place else tensors["latents"].clone()
        latents.flatten(1)[:, 3] = 9
        return None if in_place else {"latents": latents}

    call = {"class_labels": labels, "generator": generators(2), "output_type": "latent", "guidance_scale": 2.0}
    made = pipe(**call, callback_on_step_end=callback).images
    assert torch.equal(made, teacher(pipe, labels, 2.0, generators(2), replaced=(5, 3, 9)))


def test_classes_that_a_callback_replaces_are_what_the_rest_sees():
    """From step 6 on the network is told another class: the memory of the first one must not stay."""
    pipe = autoregressive(num_class_embeds=4)
    seen = []

    def callback(view, i, t, tensors):
        seen.append(tensors["model_output"])
        return {"class_labels": torch.tensor([1])} if i == 5 else None

    inputs = ["model_output", "class_labels"]
    x = pipe(
        class_labels=0,
        seed=1,
        output_type="latent",
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=inputs,
    ).images
    with torch.no_grad():
        expected = pipe.transformer(x, torch.tensor([1])).sample.flatten(1, 2)
    for i in range(6, 12):
        torch.testing.assert_close(seen[i], expected[:, i], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("first", "then"), [(3.0, 1.0), (1.0, 3.0)])
def test_guidance_may_be_switched_in_mid_call(first, then):
    pipe = autoregressive(num_class_embeds=4)
    seen = []

    def callback(view, i, t, tensors):
        seen.append(tensors["model_output"])
        if i == 5:
            view.guidance_scale = then

    inputs = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["model_output"]}
    x = pipe(class_labels=0, seed=1, guidance_scale=first, output_type="latent", **inputs).images
    with torch.no_grad():
        given, none = (pipe.transformer(x, torch.tensor([c])).sample.flatten(1, 2) for c in (0, 3))
    for i in range(12):
        scale = first if i <= 5 else then
        expected = none[:, i] + scale * (given[:, i] - none[:, i])
        torch.testing.assert_close(seen[i], expected, atol=1e-4, rtol=1e-4)


def test_guidance_acts_in_its_interval_only():
    """Tokens of the first half are drawn unguided: those of a plain call with the same seed."""
    pipe = autoregressive(num_class_embeds=4)
    call = {"class_labels": 1, "seed": 3, "output_type": "latent"}
    plain = pipe(**call).images.flatten()
    late = pipe(**call, guidance_scale=6.0, guidance_interval=(0.5, 1.0)).images.flatten()
    assert torch.equal(late[:6], plain[:6])
    assert not torch.equal(late, plain)
    never = pipe(**call, guidance_scale=6.0, guidance_interval=(1.0, 1.0)).images.flatten()
    assert torch.equal(never, plain)


# -- guidance of the masked pipeline


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [0, 1 / 4, 2 / 4, 3 / 4]),
        ("power_cosine", [0, 0.000602, 0.037938, 0.378697]),
    ],
)
def test_guidance_schedules_by_hand(schedule, shares):
    """(1 − cos π(k/4)³)/2 = 0, .000602, .038060, .378… for k = 0 … 3."""
    pipe, seen = masked(num_class_embeds=4), []

    def callback(view, i, t, tensors):
        seen.append((tensors["model_output"], tensors["latents"]))

    inputs = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["model_output", "latents"]}
    call = {"class_labels": 0, "seed": 1, "guidance_scale": 3.0, "num_inference_steps": 4}
    pipe(**call, guidance_schedule=schedule, **inputs)
    z = torch.full((1, *SHAPE), K)
    for (output, latents), share in zip(seen, shares):
        with torch.no_grad():
            given, none = (pipe.transformer(z, torch.tensor([c])).sample for c in (0, 3))
        torch.testing.assert_close(output, none + (1 + 2 * share) * (given - none), atol=2e-3, rtol=1e-3)
        z = latents


# -- larger pictures


def test_a_window_slides_over_a_larger_map():
    """Each token is drawn from the window around it, as taming-transformers places it."""
    pipe, grid = autoregressive(), (5, 7)
    made = pipe(seed=4, token_grid=grid, output_type="latent").images
    assert made.shape == (1, *grid)
    assert pipe(seed=4, token_grid=grid, output_type="pt").images.shape == (1, 3, 10, 14)
    seen = []
    inputs = {"callback_on_step_end_tensor_inputs": ["model_output"]}
    pipe(
        seed=4,
        token_grid=grid,
        output_type="latent",
        callback_on_step_end=lambda p, i, t, tensors: seen.append(tensors["model_output"]) or {},
        **inputs,
    )
    for row in range(5):
        for column in range(7):
            above = row if row <= 1 else 3 - (5 - row) if 5 - row < 2 else 1  # rows of the window above this one
            beside = column if column <= 2 else 4 - (7 - column) if 7 - column < 2 else 2
            top, left = row - above, column - beside
            window = made[:, top : top + 3, left : left + 4]
            assert window.shape[1:] == SHAPE
            with torch.no_grad():
                expected = pipe.transformer(window).sample[:, above, beside]
            torch.testing.assert_close(seen[row * 7 + column], expected, atol=1e-4, rtol=1e-4)


def test_the_own_map_is_no_window():
    pipe = autoregressive()
    call = {"seed": 1, "output_type": "latent"}
    assert torch.equal(pipe(**call).images, pipe(**call, token_grid=SHAPE, num_inference_steps=12).images)


def test_a_condition_slides_with_the_window():
    pipe = autoregressive(condition_codes=3, condition_length=12)
    own = torch.randint(3, (2, *SHAPE), generator=torch.Generator().manual_seed(0))
    call = {"seed": 1, "output_type": "latent"}
    assert torch.equal(pipe(**call, condition=own).images, pipe(**call, condition=own.flatten(1)).images)
    larger = torch.randint(3, (2, 4, 6), generator=torch.Generator().manual_seed(0))
    made = pipe(**call, condition=larger, token_grid=(4, 6)).images
    far = larger.clone()
    far[:, 3:, 2:] = (far[:, 3:, 2:] + 1) % 3
    other = pipe(**call, condition=far, token_grid=(4, 6)).images
    assert torch.equal(made[:, :2], other[:, :2])  # their windows do not reach the last row
    assert not torch.equal(made, other)
    for wrong in (larger[:, :3], larger.flatten(1), larger.float(), larger + 3, larger[:1], "sky"):
        with pytest.raises(InputError, match="condition"):
            pipe(**call, batch_size=2, condition=wrong, token_grid=(4, 6))


@pytest.mark.parametrize("grid", [(2, 7), (3,), (5, 7, 2), 12, "ab", (3.5, 4), (True, 7)])
def test_grids_that_do_not_fit(grid):
    with pytest.raises(InputError, match="token_grid"):
        autoregressive()(token_grid=grid)


def test_conditions_that_cannot_slide():
    pipe = autoregressive(condition_codes=3, condition_length=2)
    with pytest.raises(InputError, match="no window can slide over it"):
        pipe(condition=torch.zeros(1, 2).long(), token_grid=(5, 7))
    with pytest.raises(InputError, match="needs a condition of 2 tokens"):
        pipe()
    with pytest.raises(InputError, match="takes no condition"):
        autoregressive()(condition=torch.zeros(1, 2).long())


# -- tokens in groups


@pytest.mark.parametrize("kind", ["masked", "autoregressive"])
def test_several_tokens_a_position(kind, tmp_path):
    residual = codec(quantizer="residual", num_vq_embeddings=K, quantizer_options={"levels": 2})
    shape = residual.token_shape((3, 4, 6))
    assert shape == (2, 3, 2)
    if kind == "masked":
        parts = network(MaskedTransformer, token_shape=shape, groups=2), MaskedScheduler(mask_token_id=K)
        pipe = quiet(MaskedPipeline(residual, *parts))
    else:
        parts = network(AutoregressiveTransformer, token_shape=shape), AutoregressiveScheduler(mask_token_id=K)
        pipe = quiet(AutoregressivePipeline(residual, *parts))
    out = pipe(batch_size=2, seed=1, output_type="pt").images
    assert out.shape == (2, 3, 4, 6)
    again = quiet(DiffusionPipeline.from_pretrained(pipe.save_pretrained(tmp_path)))
    assert torch.equal(again(batch_size=2, seed=1, output_type="pt").images, out)


# -- bad input


def test_parts_that_were_not_made_for_each_other():
    parts = masked().components
    with pytest.raises(InputError, match=r"count codes differently \(vqvae 16, transformer 9\)"):
        MaskedPipeline(**{**parts, "transformer": network(MaskedTransformer, num_codes=9)})
    with pytest.raises(InputError, match="must be a MaskedTransformer; got AutoregressiveTransformer"):
        MaskedPipeline(**{**parts, "transformer": network(AutoregressiveTransformer)})
    with pytest.raises(InputError, match="must be a MaskedScheduler; got AutoregressiveScheduler"):
        MaskedPipeline(**{**parts, "scheduler": AutoregressiveScheduler(mask_token_id=K)})
    with pytest.raises(InputError, match="takes a scheduler of tokens; DDIMScheduler is one of diffusion"):
        MaskedPipeline(**{**parts, "scheduler": DDIMScheduler()})
    pipe = masked()
    with pytest.raises(InputError, match="count codes differently"):
        pipe.scheduler = MaskedScheduler(mask_token_id=99)


def test_schedulers_of_tokens_make_no_noise(ddpm):
    with pytest.raises(InputError, match="MaskedScheduler is one of tokens"):
        ddpm.scheduler = MaskedScheduler()
    with pytest.raises(InputError, match="MaskedScheduler is one of tokens"):
        LatentDiffusionPipeline(codec(latent_channels=3), ddpm.unet, MaskedScheduler())


@pytest.mark.parametrize("make", [masked, autoregressive])
def test_what_has_no_meaning_with_tokens(make):
    pipe = make(num_class_embeds=4)
    for given, said in (
        ({"latents": torch.zeros(1, *SHAPE)}, "do not start from noise"),
        ({"guidance_rescale": 0.5}, "guidance_rescale"),
        ({"temperature": -1.0}, "temperature"),
        ({"class_labels": 7}, "class 7 is out of range"),
        ({"return_dict": 1}, "return_dict"),
    ):
        with pytest.raises(InputError, match=said):
            pipe(**{"class_labels": 0, **given})


def test_options_of_one_kind_only():
    with pytest.raises(UnknownChoiceError, match="did you mean 'power_cosine'"):
        masked()(guidance_schedule="power-cosine")
    with pytest.raises(UnknownChoiceError, match="top_k"):
        masked()(top_k=3)
    for given in ({"top_k": -1}, {"top_p": 0.0}, {"num_inference_steps": 8}):
        with pytest.raises(InputError, match=next(iter(given))):
            autoregressive()(**given)


@pytest.mark.parametrize("make", [masked, autoregressive])
def test_broken_weights_are_named_though_tokens_are_whole_numbers(make):
    pipe = make()
    pipe.transformer.norm.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="first in transformer"):
        pipe(seed=1)


def test_unknown_tokens_are_not_decoded():
    with pytest.raises(InputError, match="still unknown"):
        masked().decode(torch.full((1, *SHAPE), K))


def test_half_precision_makes_pictures():
    for make in (masked, autoregressive):
        pipe = make().to(torch.bfloat16)
        out = pipe(seed=1, output_type="pt").images
        assert out.dtype == torch.float32
        assert out.isfinite().all()
