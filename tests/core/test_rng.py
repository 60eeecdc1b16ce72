import subprocess
import sys

import numpy as np
import pytest
import torch

from latentia.core.rng import derive_seed, randn, sample_generators
from latentia.errors import InputError

SAMPLE_17_OF_SEED_3 = 1345086963001002864
ORDER = 3658019554517326645


def test_seed_is_the_same_in_every_process_and_release():
    assert derive_seed("sample", 3, 17) == SAMPLE_17_OF_SEED_3
    assert derive_seed("order", 7, "phase", 3) == ORDER
    code = "from latentia.core.rng import derive_seed; print(derive_seed('sample', 3, 17))"
    env = {"PYTHONHASHSEED": "5"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert int(done.stdout) == SAMPLE_17_OF_SEED_3


def test_noise_of_one_sample_is_pinned():
    noise = randn((1, 3), sample_generators(3, [17]))
    assert torch.equal(noise, torch.tensor([[0.16819661855697632, 0.24145297706127167, 0.15620076656341553]]))


def test_integers_of_other_libraries_are_integers():
    for number in (17, np.int64(17), np.uint8(17), torch.tensor(17)):
        assert derive_seed("sample", 3, number) == SAMPLE_17_OF_SEED_3
    for bad in (1.5, None, b"x", (1, 2)):
        with pytest.raises(InputError, match="integers and strings"):
            derive_seed("sample", bad)


def test_seeds_differ_and_fit_63_bits():
    seeds = {
        derive_seed(*parts)
        for parts in [(), (0,), (-1,), ("0",), (0, 0), (10, 1), (1, 10), ("a", "b"), ("ab",), (2**70,)]
    }
    assert len(seeds) == 10
    many = [derive_seed("sample", s, i) for s in range(20) for i in range(50)]
    assert len(set(many)) == 1000
    assert all(0 <= seed < 2**63 for seed in many)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_sample_does_not_depend_on_its_batch(dtype):
    batch = randn((64, 2, 3), sample_generators(5, range(64)), dtype=dtype)
    alone = randn((1, 2, 3), sample_generators(5, [17]), dtype=dtype)
    shuffled = randn((3, 2, 3), sample_generators(5, [40, 17, 2]), dtype=dtype)
    assert batch.dtype == dtype
    assert torch.equal(batch[17:18], alone)
    assert torch.equal(batch[[40, 17, 2]], shuffled)


def test_neighbouring_samples_are_independent_and_standard_normal():
    noise = randn((400, 500), sample_generators(0, range(400))).double()
    assert abs(noise.mean().item()) < 5 / 200_000**0.5
    assert abs(noise.var().item() - 1) < 5 * (2 / 200_000) ** 0.5
    correlation = torch.corrcoef(noise) - torch.eye(400)
    assert correlation.abs().max() < 6 / 500**0.5


def test_half_precision_is_rounded_float32():
    full, half = (randn((2, 8), sample_generators(1, range(2)), dtype=d) for d in (torch.float32, torch.float16))
    assert torch.equal(full.half(), half)


def test_one_generator_and_none_follow_torch():
    expected = torch.randn(2, 3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(randn((2, 3), torch.Generator().manual_seed(4)), expected)
    torch.manual_seed(4)
    assert torch.equal(randn((2, 3)), expected)


def test_generators_leave_the_global_state_alone():
    before = torch.get_rng_state()
    randn((4, 2), sample_generators(0, range(4)))
    assert torch.equal(torch.get_rng_state(), before)


def test_wrong_number_of_generators_says_both_numbers():
    with pytest.raises(InputError, match="got 2 generators for a batch of 3"):
        randn((3, 2), sample_generators(0, range(2)))
    assert randn((0, 2), []).shape == (0, 2)
