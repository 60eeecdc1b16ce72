import pytest
import torch
import torch.nn.functional as F

from latentia.core.protocols import FeatureNetwork
from latentia.data.digits import digits
from latentia.errors import ConfigError, InputError
from latentia.metrics.classifier import ConvClassifier


def test_shapes_and_config():
    network = ConvClassifier(name="tones", num_classes=3, in_channels=3, feature_dim=5).eval()
    assert isinstance(network, FeatureNetwork)
    assert network.name == "tones"
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert network.features(x).shape == (2, 5)
    assert network(x).shape == (2, 3)
    again = ConvClassifier.from_config(network.config)
    assert again.config == network.config
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(x), network(x))


def test_size_of_the_digits_judge():
    assert ConvClassifier().num_parameters() == 56_538


def test_bad_input():
    with pytest.raises(InputError, match=r"judges x of \(B, 1, H, W\), got \(2, 3, 8, 8\)"):
        ConvClassifier()(torch.zeros(2, 3, 8, 8))
    with pytest.raises(InputError, match="at least 2 classes"):
        ConvClassifier(num_classes=1)
    for bad in ({"num_classes": 2.5}, {"feature_dim": 0}, {"pool": 0}, {"channels": (16, 0)}):
        with pytest.raises(ConfigError, match=f"{next(iter(bad))} must be an integer of at least 1"):
            ConvClassifier(**bad)
    with pytest.raises(InputError, match="one convolution"):
        ConvClassifier(channels=())
    with pytest.raises(ConfigError, match="did you mean 'num_classes'"):
        ConvClassifier(num_clases=10)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_the_digits_with_dense_features(seed):
    """400 steps (3 CPU-seconds) reach 0.976 on the test set, and every feature moves."""
    train, test = digits("train"), digits("test")
    torch.manual_seed(seed)
    network = ConvClassifier()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        batch = train.batch(torch.randint(len(train), (64,)))
        optimizer.zero_grad()
        F.cross_entropy(network(batch["x"]), batch["label"]).backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        hits = network(test.tensors["x"]).argmax(1) == test.tensors["label"]
        features = network.features(test.tensors["x"])
    assert float(hits.float().mean()) >= 0.976
    assert float(torch.linalg.eigvalsh(features.double().T.cov())[0]) > 1e-3
