"""DatasetScorer: the numbers of the plain loop, batch by batch, with and without a memory of the trunk."""

import pytest
import torch

from latentia.data.dataset import TensorDataset
from latentia.errors import InputError, UnknownChoiceError
from latentia.methods.pdiff.architectures import build, paper_layers
from latentia.methods.pdiff.dataset_scoring import DatasetScorer
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.scoring import Scorer


def case(name="resnet18", images=70):
    torch.manual_seed(0)
    network = build(name, 10, image_size=8, channels=1, width=0.06)
    x, y = torch.randn(images, 1, 8, 8), torch.randint(0, 10, (images,))
    network(x[:32])
    layout = ParameterLayout.select(network, paper_layers(name))
    vectors = layout.flatten(network) + 0.5 * torch.randn(5, layout.size)
    return network, layout, vectors, x, y


def scorer(network, layout, x, y, **options):
    return DatasetScorer(
        network, layout, network.state_dict(), TensorDataset({"x": x, "label": y}), **{"batch_size": 32, **options}
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vit-tiny", "convnext-tiny"])
def test_equal_to_the_loop(name):
    network, layout, vectors, x, y = case(name)
    loop = Scorer(network, layout, network.state_dict(), x, y, vectorised=False)
    found = scorer(network, layout, x, y)
    torch.testing.assert_close(found.probabilities(vectors), loop.probabilities(vectors), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.wrong(vectors), loop.wrong(vectors))
    assert torch.equal(found.accuracies(vectors, chunk=2), loop.accuracies(vectors))
    assert torch.equal(found.y, y)


class Counting:
    def __init__(self, x, y):
        self.tensors, self.calls = TensorDataset({"x": x, "label": y}), 0

    def __len__(self):
        return len(self.tensors)

    def batch(self, indices):
        self.calls += 1
        return self.tensors.batch(indices)


@pytest.mark.parametrize(("kept", "again"), [(2**31, 0), (0, 3), (40_000, 2)])
def test_the_trunk_is_kept_as_far_as_there_is_room(kept, again):
    network, layout, vectors, x, y = case()
    data = Counting(x, y)
    found = DatasetScorer(network, layout, network.state_dict(), data, batch_size=32, cache=kept)
    first = found.wrong(vectors)
    assert data.calls == 3
    if again == 2:
        found._kept = found._kept[:1]
    assert torch.equal(found.wrong(vectors), first)
    assert data.calls == 3 + again


def test_all_parameters_may_be_generated():
    network, _, _, x, y = case(images=20)
    layout = ParameterLayout.select(network, "*")
    vectors = layout.flatten(network).expand(2, -1) * torch.tensor([[1.0], [1.1]])
    loop = Scorer(network, layout, network.state_dict(), x, y, vectorised=False)
    found = scorer(network, layout, x, y)
    torch.testing.assert_close(found.probabilities(vectors), loop.probabilities(vectors), rtol=1e-3, atol=1e-4)


def test_sixteen_bits_are_close():
    network, layout, vectors, x, y = case()
    exact, rough = (scorer(network, layout, x, y, precision=p).probabilities(vectors) for p in ("no", "bf16"))
    assert 0 < float((exact - rough).abs().max()) < 0.05


def test_bad_input():
    network, layout, vectors, x, y = case()
    with pytest.raises(UnknownChoiceError, match="precision"):
        scorer(network, layout, x, y, precision="fp16")
    with pytest.raises(InputError, match="no images"):
        scorer(network, layout, x[:0], y[:0])
    found = scorer(network, layout, x, y)
    with pytest.raises(InputError, match="this layout holds"):
        found.wrong(vectors[:, :-1])
    with pytest.raises(InputError, match="own tensors bn"):
        found.wrong(vectors, own={"bn": torch.zeros(5, 1)})
    with pytest.raises(InputError, match="not of this network"):
        DatasetScorer(
            *(build("vit-tiny", 10, image_size=8, channels=1, width=0.06), layout, network.state_dict()),
            TensorDataset({"x": x, "label": y}),
        )
