import pytest
import torch

from latentia.data.dataset import TensorDataset
from latentia.training.order import DataOrder, batches


def stream(order, steps):
    return torch.cat([order.batch(k) for k in range(steps)]).tolist()


@pytest.mark.parametrize(("length", "batch"), [(10, 4), (10, 10), (3, 8), (1, 5), (7, 7)])
def test_every_pass_is_a_permutation_and_nothing_is_dropped(length, batch):
    seen = stream(DataOrder(length, batch, seed=0, phase="p"), steps=3 * length)
    for epoch in range(3 * batch):
        assert sorted(seen[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_a_step_does_not_depend_on_what_was_asked_before():
    order = DataOrder(10, 4, seed=3, phase="p")
    forwards = [order.batch(k).tolist() for k in range(20)]
    fresh = DataOrder(10, 4, seed=3, phase="p")
    assert [fresh.batch(k).tolist() for k in reversed(range(20))][::-1] == forwards


def test_passes_seeds_and_phases_differ():
    base = DataOrder(50, 50, seed=0, phase="p")
    other = [DataOrder(50, 50, 1, "p").batch(0), DataOrder(50, 50, 0, "q").batch(0), base.batch(1)]
    assert all(not torch.equal(base.batch(0), order) for order in other)


def test_processes_and_accumulation_share_one_batch():
    order = DataOrder(100, 12, seed=0, phase="p")
    whole = order.batch(5).tolist()
    shares = [order.share(5, rank, processes=2, accumulate=3) for rank in range(2)]
    assert [i for a in range(3) for rank in range(2) for i in shares[rank][a]] == whole
    assert order.share(5, 0, 1, 1) == [whole]


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_batches_come_in_order(workers):
    data = TensorDataset({"x": torch.arange(30)})
    plan = [[[i, i + 1], [i + 2]] for i in range(25)]
    got = [[b["x"].tolist() for b in step] for step in batches(data, iter(plan), workers)]
    assert got == plan


def test_an_error_in_a_thread_comes_out_where_its_batch_would_have():
    class Broken:
        def __len__(self):
            return 10

        def batch(self, indices):
            if 7 in indices:
                raise OSError("disk gone")
            return {"x": torch.tensor(indices)}

    fetched = batches(Broken(), iter([[[i]] for i in range(10)]), workers=2)
    assert [next(fetched)[0]["x"].item() for _ in range(7)] == list(range(7))
    with pytest.raises(OSError, match="disk gone"):
        next(fetched)
