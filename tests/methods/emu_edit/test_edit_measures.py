import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.methods.emu_edit.datasets import SceneRows
from latentia.methods.emu_edit.measures import pretrained
from latentia.methods.emu_edit.measures.clip import CLIP_MEAN, CLIP_STD, ClipFeatures, clip_name
from latentia.methods.emu_edit.measures.contrastive import CaptionedEdits, ContrastiveObjective, contrast, retrieval
from latentia.methods.emu_edit.measures.cosines import cosine, direction, pixel_distance, sized
from latentia.methods.emu_edit.measures.dino import DinoFeatures, dino_name
from latentia.methods.emu_edit.measures.extractors import PicturesAndTexts
from latentia.methods.emu_edit.measures.measure import Edit, EditMeter, Extractors
from latentia.methods.emu_edit.measures.pretrained import Preparation, weights_digest
from latentia.methods.emu_edit.measures.towers import SceneTowers, SceneTrunk, word_number
from tiny_extractors import save_clip, save_dino, save_dinov2


def flat(value, height=4, width=4):
    return np.full((height, width, 3), value, dtype=np.uint8)


def noisy(seed, height=40, width=56):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


# Closed forms ----------------------------------------------------------------------------------------------------


def test_cosine_by_hand():
    found = cosine(rows([3, 4], [1, 0], [0, 0]), rows([4, 3], [-2, 0], [1, 1]))
    assert found[0].item() == pytest.approx(24 / 25)
    assert found[1].item() == -1
    assert math.isnan(found[2].item())
    with pytest.raises(InputError, match=r"\(B, D\)"):
        cosine(torch.ones(2, 3), torch.ones(2, 4))


def test_direction_by_hand():
    # Moved (1, 1), told (1, 0): cos 45°. Without lengths brought to 1 first.
    before, after, told_before, told_after = rows([1, 0]), rows([2, 1]), rows([0, 1]), rows([3, 1])
    assert direction(before, after, told_before, told_after, normalise=False).item() == pytest.approx(math.sqrt(0.5))
    # With: (1, 0) → (0.6, 0.8) moves (−0.4, 0.8), captions (0, 1) → (1, 0) tell (1, −1): −1.2 / (√0.8 · √2).
    found = direction(rows([5, 0]), rows([3, 4]), rows([0, 2]), rows([7, 0]))
    assert found.item() == pytest.approx(-1.2 / math.sqrt(1.6))


def test_direction_of_nothing():
    a, b = rows([1, 0]), rows([0, 1])
    assert direction(a, a, a, b).item() == 0  # nothing was done
    assert math.isnan(direction(a, b, a, a).item())  # nothing was asked for
    assert math.isnan(direction(a, a, a, a).item())
    assert direction(a, b, a, b).item() == pytest.approx(1)
    assert direction(a, b, b, a).item() == pytest.approx(-1)


def test_pixel_distances_do_not_wrap_around():
    assert pixel_distance(flat(10), flat(20)) == pytest.approx(10 / 255)
    assert pixel_distance(flat(10), flat(20), 2) == pytest.approx((10 / 255) ** 2)  # bytes would give 246 one way
    assert pixel_distance(flat(255), flat(0)) == 1
    half = np.concatenate([flat(0), flat(51)])
    assert pixel_distance(half, flat(0, 8)) == pytest.approx(0.1)
    assert pixel_distance(half, flat(0, 8), 2) == pytest.approx(0.02)
    with pytest.raises(InputError, match="one shape"):
        pixel_distance(flat(1), flat(1, 5))
    with pytest.raises(InputError, match="uint8"):
        pixel_distance(flat(1).astype(np.float32), flat(1))


def test_results_take_the_size_of_what_they_are_compared_with():
    picture = noisy(0, 8, 12)
    assert sized(picture, flat(0, 8, 12)) is picture
    assert sized(picture, flat(0, 4, 6)).shape == (4, 6, 3)


# Published networks ----------------------------------------------------------------------------------------------


def test_preparation_is_torchvisions_by_hand():
    prepare = Preparation(resize=4, crop=2, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    picture = np.zeros((4, 7, 3), dtype=np.uint8)
    picture[1:3, 2:4] = 255  # the centre 2×2 of 4×7: rows from 1, columns from round(2.5) = 2
    x = prepare([picture, flat(0, 9, 4)])
    assert x.shape == (2, 3, 2, 2)
    assert (x[0] == 2).all()
    assert (x[1] == -2).all()  # values in [0, 1] before mean and deviation


def test_preparation_keeps_proportions_and_rounds_down():
    seen = []
    prepare = Preparation(224, 224, (0, 0, 0), (1, 1, 1))
    wide = Image.fromarray(noisy(1, 100, 333))
    seen.append(prepare([np.asarray(wide)])[0])
    by_hand = wide.resize((int(224 * 333 / 100), 224), Image.Resampling.BICUBIC)
    left = round((by_hand.width - 224) / 2)
    expected = np.asarray(by_hand.crop((left, 0, left + 224, 224))).transpose(2, 0, 1) / 255
    assert np.allclose(seen[0].numpy(), expected, atol=1e-6)


def test_preparation_is_transformers_to_the_last_bit():
    from transformers import CLIPImageProcessorPil

    pictures = [noisy(1, 100, 336), noisy(2, 260, 224)]
    expected = CLIPImageProcessorPil()([Image.fromarray(each) for each in pictures], return_tensors="pt")
    assert torch.equal(Preparation(224, 224, CLIP_MEAN, CLIP_STD)(pictures), expected["pixel_values"])


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    return save_dino(tmp_path_factory.mktemp("dino"))


def test_clip_is_what_transformers_says(clip_folder):
    from transformers import CLIPModel

    clip = ClipFeatures(clip_folder)
    assert isinstance(clip, PicturesAndTexts)
    assert clip.name == f"clip-{weights_digest(clip_folder)}"
    pictures, texts = [noisy(1), noisy(2, 64, 33)], ["a red square", "moon"]
    peer = CLIPModel.from_pretrained(clip_folder).eval()
    ids = clip.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = peer(**ids, pixel_values=clip.prepare(pictures))
    assert torch.allclose(torch.nn.functional.normalize(clip.pictures(pictures)), out.image_embeds, atol=1e-6)
    assert torch.allclose(torch.nn.functional.normalize(clip.texts(texts)), out.text_embeds, atol=1e-6)


def test_clip_takes_tensors_in_minus_one_to_one(clip_folder):
    clip = ClipFeatures(clip_folder)
    picture = noisy(3)
    x = torch.from_numpy(picture).movedim(-1, 0)[None] / 127.5 - 1
    assert torch.equal(clip.images(x), clip.pictures([picture]))


def test_clip_cuts_long_texts_and_says_so(clip_folder):
    clip = ClipFeatures(clip_folder)
    long = "a red square " * 30
    assert clip.too_long(long)
    assert not clip.too_long("a red square")
    assert clip.texts([long, "a"]).shape == (2, 8)


def test_names_of_published_networks(clip_folder, dino_folder):
    from transformers import CLIPConfig, Dinov2Config, Dinov2WithRegistersConfig, ViTConfig

    assert clip_name(CLIPConfig(), "0") == "ViT-B/32"  # transformers' defaults are OpenAI's B/32
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14, "num_attention_heads": 16}
    assert clip_name(CLIPConfig(vision_config=large), "0") == "ViT-L/14"
    assert clip_name(CLIPConfig(vision_config={**large, "image_size": 336}), "0") == "ViT-L/14@336px"
    assert clip_name(CLIPConfig(vision_config={"hidden_act": "gelu"}), "abc") == "clip-abc"  # other weights
    assert dino_name(ViTConfig(hidden_size=384, num_attention_heads=6), "0") == "dino_vits16"
    assert dino_name(Dinov2Config(hidden_size=768, patch_size=14), "0") == "dinov2_vitb14"
    registers = Dinov2WithRegistersConfig(hidden_size=1024, num_attention_heads=16, patch_size=14, num_hidden_layers=24)
    assert dino_name(registers, "0") == "dinov2_vitl14_reg"
    assert dino_name(Dinov2Config(hidden_size=768, patch_size=16), "abc") == "dinov2-abc"


def test_dino_is_the_class_token(dino_folder):
    from transformers import ViTModel

    dino = DinoFeatures(dino_folder)
    peer = ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()
    pictures = [noisy(1), noisy(2, 64, 33)]
    with torch.no_grad():
        expected = peer(dino.prepare(pictures)).last_hidden_state[:, 0]
    assert torch.equal(dino.pictures(pictures), expected)
    assert (dino.prepare.resize, dino.prepare.crop) == (round(32 * 8 / 7), 32)
    x = torch.from_numpy(pictures[0]).movedim(-1, 0)[None] / 127.5 - 1
    assert torch.equal(dino.images(x), dino.pictures(pictures[:1]))


def test_dinov2_is_cropped_to_224_whatever_it_was_trained_at(tmp_path):
    dino = DinoFeatures(save_dinov2(tmp_path))
    assert (dino.prepare.resize, dino.prepare.crop) == (256, 224)
    assert dino.pictures([noisy(0, 30, 30)]).shape == (1, 16)


def test_half_a_network_measures_nothing(clip_folder, dino_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    for folder, kind in ((clip_folder, ClipFeatures), (dino_folder, DinoFeatures)):
        half = shutil.copytree(folder, tmp_path / kind.__name__)
        tensors = load_file(half / "model.safetensors")
        lost = next(name for name in tensors if name.endswith(("fc1.weight", "key.weight")))
        del tensors[lost]
        save_file(tensors, half / "model.safetensors", {"format": "pt"})
        with pytest.raises(ArtifactError, match="1 weights missing"):
            kind(half)
        (half / "model.safetensors").write_bytes(b"nothing")
        with pytest.raises(ArtifactError, match="holds no readable"):
            kind(half)


def test_folders_that_hold_no_extractor(clip_folder, dino_folder, tmp_path):
    with pytest.raises(UnknownChoiceError, match="model type of a DINO folder 'clip'"):
        DinoFeatures(clip_folder)
    with pytest.raises(UnknownChoiceError, match="model type of a CLIP folder 'vit': known: clip"):
        ClipFeatures(dino_folder)
    with pytest.raises(ArtifactError, match=r"has no config\.json"):
        ClipFeatures(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ArtifactError, match=r"has no pytorch_model\.bin"):
        ClipFeatures(tmp_path)
    with pytest.raises(ArtifactError, match="no folder"):
        DinoFeatures(tmp_path / "nowhere")


class Harmful:
    def __reduce__(self):
        return (print, ("run by a pickle",))


def test_older_weight_files_are_read_without_running_them(clip_folder, tmp_path, capsys):
    from safetensors.torch import load_file

    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    torch.save(load_file(clip_folder / "model.safetensors"), folder / "pytorch_model.bin")
    old, new = (ClipFeatures(each).texts(["a moon"]) for each in (folder, clip_folder))
    assert torch.allclose(old, new, atol=1e-6)
    torch.save({"logit_scale": Harmful()}, folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="holds no readable CLIPModel"):
        ClipFeatures(folder)
    assert "run by a pickle" not in capsys.readouterr().out


def test_older_files_are_fetched_only_where_there_are_no_others(clip_folder, tmp_path, monkeypatch):
    asked = []

    def resolve(name, *, allow_patterns, complete):
        asked.append("pytorch_model.bin" in allow_patterns)
        folder = tmp_path / name
        if asked[-1]:
            (folder / "pytorch_model.bin").touch()
        complete(folder)
        return folder

    monkeypatch.setattr(pretrained, "resolve_folder", resolve)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "new" / "model.safetensors").touch()
    assert pretrained.weights_file(pretrained.model_folder("new")).name == "model.safetensors"
    assert asked == [False]
    assert pretrained.weights_file(pretrained.model_folder("old")).name == "pytorch_model.bin"
    assert asked == [False, False, True]


# The embedded towers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def towers():
    torch.manual_seed(0)
    return SceneTowers(channels=(8, 8, 16), feature_dim=16, word_dim=8, text_channels=16).eval()


def test_towers_measure_pictures_of_any_size_and_any_text(towers):
    assert isinstance(towers, PicturesAndTexts)
    z = towers.pictures([noisy(0, 64, 64), noisy(1, 30, 90)])
    assert z.shape == (2, 16)
    assert torch.allclose(towers.images(torch.zeros(1, 3, 64, 64)), towers.pictures([flat(128, 64, 64)]), atol=1e-2)
    assert towers.texts(["a red square", "", "Größe 3!"]).shape == (3, 16)
    assert torch.equal(towers.texts(["a Red SQUARE"]), towers.texts(["a red square"]))
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        towers.images(torch.zeros(1, 1, 64, 64))


def test_words_have_numbers_that_processes_agree_on(towers):
    assert word_number("square", 2048) == 1414
    numbers = towers.word_numbers(["red square", "the red square , please " * 20])
    assert numbers.shape == (2, 48)
    assert (numbers[0] > 0).sum() == 2
    assert (numbers[1] > 0).all()
    assert towers.too_long("word " * 49)
    assert not towers.too_long("word " * 48)


def test_towers_do_not_see_padding(towers):
    words = towers.word_numbers(["a red square on a grey background"])
    short = towers.text_features(words[:, :10])
    assert torch.allclose(towers.text_features(words), short, atol=1e-6)


def test_towers_travel_as_safetensors(towers, tmp_path):
    towers.save_pretrained(tmp_path)
    back = SceneTowers.from_pretrained(tmp_path)
    assert back.name == "scenes"
    assert torch.equal(back.texts(["a moon"]), towers.texts(["a moon"]))
    trunk = SceneTrunk(back)
    assert trunk.pictures([noisy(0)]).shape == (1, 32)
    assert trunk.name == "scenes"


@pytest.mark.parametrize("wrong", [{"channels": (8, 8)}, {"size": 4}, {"vocab_size": 1}, {"feature_dim": 0}])
def test_towers_of_impossible_sizes(wrong):
    with pytest.raises(ValueError):
        SceneTowers(**wrong)


def test_contrast_by_hand():
    # One row: pictures (before, after) against captions (before, after), scores ln 3 on the diagonal, 0 off it.
    scores, words = math.log(3) * torch.eye(2), torch.tensor([[1], [2]])
    loss, parts = contrast(scores, words, edit_weight=1.0)
    assert loss.item() == pytest.approx(2 * math.log(4 / 3))
    assert (parts["retrieved"], parts["told_apart"]) == (1, 1)
    assert contrast(scores, words, 0.0)[0].item() == pytest.approx(math.log(4 / 3))


def test_equal_captions_are_not_counted_against_each_other():
    words = torch.tensor([[1], [1], [2], [3]])  # the two rows have the same caption before
    scores = torch.zeros(4, 4)
    loss, _ = contrast(scores, words, 0.0)
    assert loss.item() == pytest.approx((2 * math.log(3) + 2 * math.log(4)) / 4)


def test_towers_learn_edits(towers):
    import copy

    data = CaptionedEdits(SceneRows("train", 1000, seed=3), towers)
    batch = data.batch(range(24))
    assert batch["words"].shape == (24, 48)
    assert batch["source"].shape == (24, 3, 64, 64)
    learner = copy.deepcopy(towers).train()
    objective = ContrastiveObjective(learner)
    optimizer = torch.optim.Adam(objective.parameters(), 1e-2)
    losses = []
    for _ in range(14):
        loss = objective(batch)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[-1] < 0.8 * losses[0]


def test_retrieval_of_random_towers_is_chance(towers):
    rows = SceneRows("test", 200, seed=1)
    found = retrieval(towers, [rows.row(i) for i in range(50)], among=25)
    assert found["retrieved_of_25"].name == "retrieved_of_25[scenes]"
    assert found["retrieved_of_25"].value < 0.3
    assert 0.3 < found["told_apart"].value < 0.7
    with pytest.raises(InputError, match="as many rows"):
        retrieval(towers, [rows.row(0)], among=25)


# Edits measured --------------------------------------------------------------------------------------------------


class Fake:
    """Features by hand: a picture is its mean colour, a text the vector that it spells."""

    name, digest = "fake", "0123"

    def pictures(self, pictures):
        return torch.tensor(np.stack([p.mean(axis=(0, 1)) for p in pictures]), dtype=torch.float32)

    def texts(self, texts):
        return torch.tensor([[float(v) for v in text.split()] for text in texts])

    def too_long(self, text):
        return text.endswith("9")


def colour(*rgb):
    return np.broadcast_to(np.array(rgb, dtype=np.uint8), (4, 4, 3)).copy()


RED, GREEN, BLUE = colour(255, 0, 0), colour(0, 255, 0), colour(0, 0, 255)


def test_every_measure_by_hand():
    edits = [
        Edit(RED, GREEN, "1 0 0", "0 1 0", target=GREEN, local_caption="0 3 4", group="a"),
        Edit(RED, RED, "1 0 0", "0 1 0", target=GREEN, local_caption="1 0 0", group="b"),
        Edit(RED, BLUE, "1 0 0", "1 0 0", group="b"),
    ]
    meter = EditMeter(Extractors(Fake(), Fake()), batch_size=2).add(edits)
    found = {each.name: each for each in meter.measurements()}
    expected = {
        "clip_dir[fake]": ((1 + 0) / 2, 2),  # the third has no direction: its captions are the same
        "clip_im[fake]": ((0 + 1 + 0) / 3, 3),
        "clip_out[fake]": ((1 + 0 + 0) / 3, 3),
        "clip_i[fake]": ((1 + 0) / 2, 2),
        "clip_t[fake]": ((0.6 + 1) / 2, 2),
        "clip_t_of_target[fake]": ((0.6 + 0) / 2, 2),
        "dino_input[fake]": ((0 + 1 + 0) / 3, 3),
        "dino_target[fake]": ((1 + 0) / 2, 2),
        "l1_input[pixels]": ((2 / 3 + 0 + 2 / 3) / 3, 3),
        "l2_input[pixels]": ((2 / 3 + 0 + 2 / 3) / 3, 3),
        "l1_target[pixels]": ((0 + 2 / 3) / 2, 2),
        "l2_target[pixels]": ((0 + 2 / 3) / 2, 2),
    }
    assert set(found) == set(expected)
    for name, (value, n) in expected.items():
        assert found[name].value == pytest.approx(value, abs=1e-6), name
        assert found[name].n_generated == n, name
    assert found["clip_dir[fake]"].details["undefined"] == 1
    assert found["clip_dir[fake]"].details["weights"] == "0123"
    assert found["clip_dir[fake]"].details["standard_error"] == pytest.approx(0.5)
    assert (meter.edits, meter.unchanged, meter.captions_cut) == (3, 1, 0)
    assert meter.group_names() == ["a", "b"]
    assert {m.name: m.value for m in meter.measurements("b")}["clip_im[fake]"] == pytest.approx(0.5)


def test_measures_do_not_depend_on_the_batch():
    edits = [Edit(noisy(i), noisy(i + 9), "1 2 3", "3 2 9", target=noisy(i + 5) if i % 2 else None) for i in range(5)]
    one, five = (EditMeter(Extractors(Fake(), Fake()), size).add(edits) for size in (1, 5))
    assert {m.name: m.value for m in one.measurements()} == pytest.approx(
        {m.name: m.value for m in five.measurements()}
    )
    assert one.captions_cut == five.captions_cut == 5


def test_without_networks_only_pixels_are_measured():
    meter = EditMeter(Extractors()).add([Edit(RED, GREEN, "1 0 0", "0 1 0")])
    assert [m.name for m in meter.measurements()] == ["l1_input[pixels]", "l2_input[pixels]"]
    assert Extractors().names() == (None, None)


def test_published_networks_measure_deterministically(clip_folder, dino_folder):
    edits = [Edit(noisy(i), noisy(i + 4, 30, 30), "a red square", "a moon") for i in range(3)]
    values = []
    for _ in range(2):
        meter = EditMeter(Extractors(ClipFeatures(clip_folder), DinoFeatures(dino_folder)), 2).add(edits)
        values.append([m.value for m in meter.measurements()])
    assert values[0] == values[1]
    names = {m.name for m in meter.measurements()}
    assert f"clip_dir[clip-{weights_digest(clip_folder)}]" in names
    assert f"dino_input[dino-{weights_digest(dino_folder)}]" in names
