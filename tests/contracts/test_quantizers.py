"""What every registered quantizer must do."""

import inspect
import math
from dataclasses import dataclass, field

import pytest
import torch

from latentia.codecs.quantizers.quantizer import Quantized, Quantizer
from latentia.codecs.quantizers.registry import NEEDED, QUANTIZERS, build_quantizer
from latentia.errors import ConfigError, InputError, UnknownChoiceError


@dataclass(frozen=True)
class Case:
    name: str
    dim: int
    options: dict = field(default_factory=dict)
    learned: bool = True  # a codebook that follows the data


CASES = {
    "fsq": Case("fsq", 3, {"levels": (3, 4, 5)}, learned=False),
    "fsq of bits": Case("fsq", 5, {"levels": (2,) * 5}, learned=False),
    "lfq": Case("lfq", 5, learned=False),
    "lfq, two tokens": Case("lfq", 6, {"group_bits": 3}, learned=False),
    "residual": Case("residual", 4, {"num_codes": 7, "levels": 3}),
    "residual by gradient": Case("residual", 4, {"num_codes": 7, "levels": 2, "codebook": "vq"}),
    "vq": Case("vq", 3, {"num_codes": 11}),
    "vq_ema": Case("vq_ema", 3, {"num_codes": 11}),
    "vq_ema, cosine": Case("vq_ema", 4, {"num_codes": 11, "cosine": True}),
    "vq_ema, random start": Case("vq_ema", 3, {"num_codes": 11, "kmeans": 0, "revive": 0.0}),
}
every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def settled(case: Case) -> Quantizer:
    """Built, trained on a few batches where it learns from forward passes, in eval mode."""
    torch.manual_seed(0)
    quantizer = build_quantizer(case.name, dim=case.dim, **case.options)
    for parameter in quantizer.parameters():
        torch.nn.init.normal_(parameter)
    for seed in range(3):
        quantizer(normal(8, case.dim, 9, seed=seed))
    return quantizer.eval()


def test_every_quantizer_has_a_case():
    assert {case.name for case in CASES.values()} == set(QUANTIZERS)
    assert list(QUANTIZERS) == sorted(QUANTIZERS)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_options_are_the_constructors(name):
    arguments = [a for a in inspect.signature(QUANTIZERS[name]).parameters if a != "dim"]
    assert sorted(QUANTIZERS[name].options) == sorted(arguments)


@every
@pytest.mark.parametrize("positions", [(), (7,), (4, 5), (2, 3, 2)])
def test_values_tokens_and_shapes(case, positions):
    quantizer = settled(case)
    z = normal(2, case.dim, *positions)
    out = quantizer(z)
    each = () if quantizer.tokens == 1 else (quantizer.tokens,)
    assert isinstance(out, Quantized)
    assert out.values.shape == z.shape
    assert out.values.dtype == z.dtype
    assert out.indices.shape == (2, *positions, *each)
    assert out.indices.dtype == torch.int64
    assert 0 <= out.indices.min() <= out.indices.max() < quantizer.num_codes
    assert torch.equal(out.values, quantizer.embed(out.indices))
    assert torch.equal(out.indices, quantizer.assign(z))
    assert out.loss.shape == ()
    assert out.loss.isfinite()
    assert not any(part.requires_grad for part in out.parts.values())
    assert quantizer.bits_per_position() == pytest.approx(quantizer.tokens * math.log2(quantizer.num_codes))


@every
def test_quantising_twice_is_quantising_once(case):
    """Values are their own nearest code (of a residual one the first level may choose again)."""
    quantizer = settled(case)
    if case.name == "residual":
        pytest.skip("sums of codes are not codes of the first level")
    values = quantizer(normal(3, case.dim, 20)).values
    if case.name == "fsq":
        values = torch.atanh(values.clamp(-1 + 1e-6, 1 - 1e-6))  # z of this value
    again = quantizer(values)
    torch.testing.assert_close(quantizer.embed(again.indices), quantizer.embed(quantizer.assign(values)))
    assert torch.equal(again.indices, quantizer.assign(values))
    if case.name != "fsq":
        torch.testing.assert_close(again.values, values)


@every
def test_a_vector_s_token_does_not_depend_on_its_company(case):
    quantizer = settled(case)
    z = normal(6, case.dim, 4)
    whole = quantizer.assign(z)
    assert torch.equal(torch.cat([quantizer.assign(one) for one in z.split(1)]), whole)
    assert torch.equal(quantizer.assign(z.to(memory_format=torch.contiguous_format).flip(0)), whole.flip(0))


@every
def test_evaluation_changes_nothing_and_is_repeatable(case):
    quantizer = settled(case)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    z = normal(4, case.dim, 6, seed=9)
    first = quantizer(z)
    quantizer.train()
    with torch.no_grad():
        second = quantizer(z)
    assert torch.equal(first.values, second.values)
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


@every
def test_gradients_reach_z_and_are_finite(case):
    quantizer = settled(case).train()
    z = normal(3, case.dim, 8).requires_grad_()
    out = quantizer(z)
    (out.values * normal(*z.shape, seed=4)).sum().backward(retain_graph=True)
    assert z.grad.isfinite().all()
    assert z.grad.abs().sum() > 0
    if out.loss.requires_grad:
        out.loss.backward()
        assert z.grad.isfinite().all()


@every
def test_weights_survive_a_trip(case):
    quantizer, z = settled(case), normal(3, case.dim, 8, seed=5)
    again = build_quantizer(case.name, dim=case.dim, **case.options)
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again.eval()(z).values, quantizer(z).values)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_no_nan(case, dtype):
    """Values far out, at 0 and tiny: losses in float32, gradients finite."""
    quantizer = settled(case).train()
    z = torch.cat([normal(2, case.dim, 6), 200 * normal(1, case.dim, 6), torch.zeros(1, case.dim, 6)]).to(dtype)
    z.requires_grad_()
    out = quantizer(z)
    assert out.values.dtype == dtype
    assert out.loss.dtype == torch.float32
    assert out.values.isfinite().all()
    assert out.loss.isfinite()
    (out.loss + out.values.float().square().mean()).backward()
    assert z.grad.isfinite().all()


@every
def test_autocast_changes_neither_tokens_nor_loss(case):
    quantizer, z = settled(case), normal(4, case.dim, 10)
    plain = quantizer(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = quantizer(z)
    assert torch.equal(inside.indices, plain.indices)
    assert torch.equal(inside.values, plain.values)
    torch.testing.assert_close(inside.loss, plain.loss, rtol=0, atol=0)


@every
def test_nan_does_not_pass_as_a_code(case):
    quantizer, z = settled(case), normal(2, case.dim, 3)
    z[0, 0, 0] = float("nan")
    out = quantizer(z)
    assert out.values[0, :, 0].isnan().any()
    assert out.values[1].isfinite().all()
    assert 0 <= out.indices.min() <= out.indices.max() < quantizer.num_codes


@every
def test_usage_stands_beside_its_ceiling(case):
    quantizer = settled(case)
    usage = quantizer.usage(quantizer.assign(normal(40, case.dim, 30)))
    tokens = 1200 * quantizer.tokens
    assert usage.ceiling == min(quantizer.num_codes, tokens)
    assert 1 < usage.perplexity <= usage.ceiling + 1e-9
    assert usage.codes == quantizer.num_codes
    assert usage.used <= usage.codes


@every
def test_shapes_without_numbers(case):
    with torch.device("meta"):
        quantizer = build_quantizer(case.name, dim=case.dim, **case.options)
        z = torch.empty(2, case.dim, 5)
    for mode in (True, False):
        out = quantizer.train(mode)(z)
        assert out.values.shape == z.shape
        assert out.values.is_meta


@every
@pytest.mark.parametrize("shape", [(2, 40, 3), (5,), (2,)])
def test_other_shapes_are_refused(case, shape):
    quantizer = settled(case)
    with pytest.raises(InputError, match=rf"expected floats of shape \(batch, {case.dim}, ...\)"):
        quantizer(torch.zeros(shape))
    with pytest.raises(InputError, match="expected floats"):
        quantizer.assign(torch.zeros(2, case.dim, 3, dtype=torch.int64))


@every
def test_tokens_of_another_codec_are_refused(case):
    quantizer = settled(case)
    indices = quantizer.assign(normal(2, case.dim, 4))
    for wrong in (indices + quantizer.num_codes, indices - quantizer.num_codes):
        with pytest.raises(InputError, match=f"but the {quantizer.num_codes} codes from 0"):
            quantizer.embed(wrong)
    with pytest.raises(InputError, match="expected integers"):
        quantizer.embed(indices.float())
    if quantizer.tokens > 1:
        with pytest.raises(InputError, match="tokens have shape"):
            quantizer.embed(torch.zeros(2, 4, quantizer.tokens + 1, dtype=torch.int64))


def test_unknown_names_are_refused():
    with pytest.raises(UnknownChoiceError, match="unknown quantizer 'lqf': did you mean 'lfq'\\? known: fsq, lfq"):
        build_quantizer("lqf", dim=3)
    with pytest.raises(UnknownChoiceError, match="unknown option of quantizer 'vq_ema' 'decya': did you mean 'decay'"):
        build_quantizer("vq_ema", dim=3, num_codes=4, decya=0.5)


@pytest.mark.parametrize("name", NEEDED)
def test_missing_options_are_named(name):
    with pytest.raises(ConfigError, match=f"quantizer '{name}' needs {NEEDED[name]}"):
        build_quantizer(name, dim=3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vq", {"num_codes": 0}),
        ("vq", {"num_codes": 4, "beta": -1.0}),
        ("vq_ema", {"num_codes": 2.5}),
        ("vq_ema", {"num_codes": 4, "decay": 1.0}),
        ("vq_ema", {"num_codes": 4, "decay": -0.1}),
        ("vq_ema", {"num_codes": 4, "eps": 0.0}),
        ("vq_ema", {"num_codes": 4, "revive": 1.0}),
        ("vq_ema", {"num_codes": 4, "kmeans": -1}),
        ("residual", {"num_codes": 4, "levels": 0}),
        ("residual", {"num_codes": 4, "codebook": "lfq"}),
        ("residual", {"num_codes": 4, "codebook_options": {"cosin": True}}),
        ("lfq", {"group_bits": 2}),
        ("lfq", {"group_bits": 0}),
        ("lfq", {"tau": 0.0}),
        ("lfq", {"entropy_weight": float("nan")}),
        ("fsq", {"levels": (3, 3)}),
        ("fsq", {"levels": (3, 3, 1)}),
        ("fsq", {"levels": 5}),
        ("fsq", {"levels": "555"}),
    ],
)
def test_bad_values_are_refused(name, options):
    with pytest.raises((ConfigError, InputError)):
        build_quantizer(name, dim=3, **options)
