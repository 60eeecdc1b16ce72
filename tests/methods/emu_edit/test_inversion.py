"""Task inversion: a step learns one vector and nothing else; where it starts; what it is saved as."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentia.data.dataset import TensorDataset
from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.methods.emu_edit import inversion
from latentia.methods.emu_edit.embedding_file import TaskEmbedding
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES
from latentia.methods.emu_edit.tasks.unseen import UNSEEN_TASKS
from latentia.training.loop import train
from latentia.training.phase import EMA, Optim, Phase
from latentia.training.settings import Settings
from tiny_editor import editor, picture

KINDS = {"pixels": {}, "gate": {"gate": True}, "latents": {"latent": True}}
every = pytest.mark.parametrize("kind", KINDS)


def examples(pipe, count=4, task="inpaint", number=None):
    def encode(texts):
        return {"input_ids": inversion.token_ids(pipe.tokenizer, texts)[:, 0]}

    rows = inversion.UnseenRows(task, "train", count, 16, 0, encode, number)
    data = rows if pipe.codec is None else inversion.LatentRows(rows, pipe)
    return TensorDataset(data.batch(range(count)))


def phase(pipe, steps=3, lr=0.1, start="mean", ema=None):
    editing = inversion.editing_objective(pipe, change_weight=0.5, gate_weight=0.1, terminal_share=0.5, dropout=0.0)
    data = examples(pipe)
    _, vector, _ = inversion.start_vector(editing, data, pipe.task_names, start)
    objective = inversion.TaskInversionObjective(editing, vector)
    return Phase("inversion", objective, data, steps, 4, Optim(lr=lr), ema=ema)


def settings(**more):
    return Settings(**{"device": "cpu", "progress": False, "tensorboard": False, "save_every": 2, **more})


def state_of(pipe):
    parts = {"model": pipe.model, "text": pipe.text_encoder}
    return {f"{n} {k}": v.clone() for n, part in parts.items() for k, v in part.state_dict().items()}


@every
def test_a_step_learns_the_vector_and_nothing_else(kind, tmp_path):
    pipe = editor(**KINDS[kind])
    before = state_of(pipe)
    made = phase(pipe)
    start = made.objective.task.vector.detach().clone()
    names = [name for name, p in made.objective.named_parameters() if p.requires_grad]
    assert names == ["task.w"]
    result = train([("inversion", lambda: made)], tmp_path / "run", settings())["inversion"]
    after = state_of(pipe)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert list(result.modules) == ["task"]
    learned = result.modules["task"].vector.detach()
    assert learned.shape == (pipe.model.task_dim,)
    assert float((learned - start).abs().max()) > 0


def test_learning_lowers_the_loss_on_the_examples(tmp_path):
    pipe = editor(gate=True)
    made = phase(pipe, steps=30, lr=0.1)
    data, editing = made.data, made.objective.editing
    start = made.objective.task.vector.detach().clone()
    result = train([("inversion", lambda: made)], tmp_path / "run", settings(save_every=100))["inversion"]
    learned = result.modules["task"].vector.detach()
    losses = inversion.losses_of(editing, data, {"start": start, "learned": learned})
    assert losses["learned"] < 0.98 * losses["start"]


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    def learned(folder, steps, resume=False):
        made = lambda: phase(editor(), steps, ema=EMA(0.9))  # noqa: E731
        result = train([("inversion", made)], folder, settings(), resume)["inversion"]
        return result.modules["task"].w.detach().clone(), result.averaged["task"]["w"].clone()

    whole = learned(tmp_path / "a", 4)
    learned(tmp_path / "b", 2)
    again = learned(tmp_path / "b", 4, resume=True)
    assert torch.equal(whole[0], again[0])
    assert torch.equal(whole[1], again[1])


def test_where_it_starts():
    pipe = editor()
    editing = inversion.editing_objective(pipe, dropout=0.0)
    data, table = examples(pipe), pipe.model.tasks.weight.detach()
    assert torch.allclose(inversion.start_vector(editing, data, pipe.task_names, "mean")[1], table.mean(0))
    name, vector, losses = inversion.start_vector(editing, data, pipe.task_names, "remove")
    assert (name, losses) == ("remove", {})
    assert torch.equal(vector, table[TASK_NAMES.index("remove")])
    name, vector, losses = inversion.start_vector(editing, data, pipe.task_names)
    assert set(losses) == {*TASK_NAMES, "mean"}
    assert losses[name] == min(losses.values())
    assert inversion.start_vector(editing, data, pipe.task_names)[2] == losses
    if name != "mean":
        assert torch.equal(vector, table[TASK_NAMES.index(name)])
    with pytest.raises(UnknownChoiceError, match="remove"):
        inversion.start_vector(editing, data, pipe.task_names, "remov")


def test_every_direction_does_equally_much():
    network = editor().model
    maps = torch.cat((network.to_time.weight, network.to_tokens.weight)).detach()
    done = (maps @ inversion.even_basis(network)).norm(dim=0)
    assert torch.allclose(done, done[:1].expand_as(done), rtol=1e-3)
    table = network.tasks.weight.detach()
    spread = ((table - table.mean(0)) @ maps.T).square().sum(1).mean().sqrt()
    assert float(done[0]) == pytest.approx(float(spread) / network.task_dim**0.5, rel=1e-3)
    with torch.no_grad():  # as training on three tasks leaves them: three directions, and little else
        low = torch.randn(len(maps), 3) @ torch.randn(3, network.task_dim) + 0.001 * torch.randn_like(maps)
        network.to_time.weight.copy_(low[: len(network.to_time.weight)])
        network.to_tokens.weight.copy_(low[len(network.to_time.weight) :])
    done = (low @ inversion.even_basis(network)).norm(dim=0)
    assert torch.allclose(done[:3], done[:1].expand(3), rtol=1e-3)
    assert float(done[3:].max()) < float(done[0])
    torch.nn.init.zeros_(network.to_time.weight)
    torch.nn.init.zeros_(network.to_tokens.weight)
    basis = inversion.even_basis(network)
    assert torch.equal(basis, torch.eye(network.task_dim) * inversion.table_scale(network))


def test_a_vector_starts_where_it_is_told():
    start, basis = torch.tensor([3.0, -6.0]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    task = inversion.TaskVector(start, basis)
    assert torch.equal(task.vector, start)
    with torch.no_grad():
        task.w += 1
    assert torch.equal(task.vector, torch.tensor([4.0, -4.0]))
    assert task(3).shape == (3, 2)
    with pytest.raises(InputError, match="task_dim"):
        inversion.TaskVector(start[None], basis)
    with pytest.raises(InputError, match="basis"):
        inversion.TaskVector(start, basis[:1])


def test_an_objective_that_trains_more_is_refused():
    pipe = editor()
    vector = pipe.model.tasks.weight[0]
    with pytest.raises(InputError, match="train_text_encoder=False"):
        inversion.TaskInversionObjective(inversion.editing_objective(pipe, train_text_encoder=True), vector)
    with pytest.raises(InputError, match="tell_task=True"):
        inversion.TaskInversionObjective(inversion.editing_objective(pipe, tell_task=False), vector)
    with pytest.raises(InputError, match="start has shape"):
        inversion.TaskInversionObjective(inversion.editing_objective(pipe), vector[:3])


@pytest.mark.parametrize("task", UNSEEN_TASKS)
def test_rows_of_unseen_tasks_are_a_function_of_their_number(task):
    rows = inversion.UnseenRows(task, "train", 8, 32, seed=3)
    first, again = rows.row(5), inversion.UnseenRows(task, "train", 8, 32, seed=3).row(5)
    assert first.task == task
    assert np.array_equal(first.target, again.target)
    other = inversion.UnseenRows(task, "test", 8, 32, seed=3).row(5)
    assert not np.array_equal(first.image, other.image)
    batch = rows.batch([0, 5])
    assert batch["x"].shape == batch["source"].shape == (2, 3, 32, 32)
    assert batch["mask"].shape == (2, 1, 32, 32)
    assert "task" not in batch
    assert batch["instruction"][1] == first.instruction
    told = inversion.UnseenRows(task, "train", 8, 32, seed=3, number=16).batch([0])
    assert told["task"].tolist() == [16]


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UnknownChoiceError, match="inpaint"):
        inversion.UnseenRows("inpant")


def test_latent_rows_are_encoded_as_the_pipeline_encodes():
    pipe = editor(latent=True)
    batch = examples(pipe).tensors
    assert batch["x"].shape == batch["source"].shape == (4, 4, 8, 8)
    assert batch["mask"].shape == (4, 1, 8, 8)
    assert batch["mask"].any()
    row = inversion.UnseenRows("inpaint", "train", 4, 16).row(0)
    seen = {}

    def note(call, i, t, tensors):
        seen.update(tensors)

    pipe(
        Image.fromarray(row.image),
        row.instruction,
        "remove",
        num_inference_steps=1,
        callback_on_step_end=note,
        callback_on_step_end_tensor_inputs=("image_latents",),
    )
    torch.testing.assert_close(batch["source"][:1], seen["image_latents"])


@every
def test_a_model_with_one_more_task_is_the_same_for_all_others(kind):
    pipe = editor(**KINDS[kind])
    vector = torch.randn(pipe.model.task_dim)
    grown = inversion.with_task(pipe.model, vector)
    assert torch.equal(grown.tasks.weight[:-1], pipe.model.tasks.weight)
    assert torch.equal(grown.tasks.weight[-1], vector)
    rest = [k for k in pipe.model.state_dict() if k != "tasks.weight"]
    assert all(torch.equal(grown.state_dict()[k], pipe.model.state_dict()[k]) for k in rest)
    names = {**pipe.task_names, "mine": 16}
    wider = inversion.editor_with(pipe, grown, names)
    wider.set_progress_bar_config(disable=True)
    call = {"instruction": "remove the red square", "num_inference_steps": 2, "seed": 1, "output_type": "np"}
    image = Image.fromarray(picture())
    for task in ("remove", "detect"):
        assert np.array_equal(pipe(image, task=task, **call).images, wider(image, task=task, **call).images)
    by_name, by_vector = wider(image, task="mine", **call).images, pipe(image, task=vector, **call).images
    assert np.array_equal(by_name, by_vector)


def test_the_file_edits_and_another_model_refuses_it(tmp_path):
    pipe = editor()
    vector = torch.randn(pipe.model.task_dim)
    path = TaskEmbedding.of(pipe.model, vector, "mine", 5, "upscale this picture").save(tmp_path / "mine.safetensors")
    assert path.stat().st_size < 8192
    call = {"num_inference_steps": 2, "seed": 1, "output_type": "np"}
    image = Image.fromarray(picture())
    from_file = pipe(image, "upscale this picture", task=str(path), **call).images
    assert np.array_equal(from_file, pipe(image, "upscale this picture", task=vector, **call).images)
    grown = inversion.editor_with(pipe, inversion.with_task(pipe.model, vector), {**pipe.task_names, "mine": 16})
    assert np.array_equal(from_file, grown(image, "upscale this picture", task=str(path), **call).images)
    with pytest.raises(ArtifactError, match="learn"):
        editor(gate=True)(image, "upscale this picture", task=str(path), **call)


def test_a_table_of_zeros_can_still_be_learned_beside():
    pipe = editor()
    torch.nn.init.zeros_(pipe.model.tasks.weight)
    assert inversion.table_scale(pipe.model) > 0
