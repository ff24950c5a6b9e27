"""examples/generate_image.py, with a tiny random unCLIP model in place of the published one."""

import importlib.util
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

EXAMPLE = Path(__file__).parents[2] / "examples" / "generate_image.py"
WIDTH, SIDE = 24, 16  # of an image embedding; of a picture

example_spec = importlib.util.spec_from_file_location("generate_image_example", EXAMPLE)
example = importlib.util.module_from_spec(example_spec)
example_spec.loader.exec_module(example)


@pytest.fixture(scope="module")
def diffusers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers compiles functions with torch.jit when it is imported
        library = pytest.importorskip("diffusers", reason="diffusers is not installed, which is the extra image")
        library.StableUnCLIPImg2ImgPipeline  # noqa: B018  imported at first use
    return library


@pytest.fixture(scope="module")
def folder(diffusers, tmp_path_factory):
    """A StableUnCLIPImg2ImgPipeline of random weights, as `from_pretrained` wants it."""
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import (
        CLIPImageProcessor,
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        CLIPVisionConfig,
        CLIPVisionModelWithProjection,
    )

    torch.manual_seed(3)
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijk")]
    unclip = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(crop_size=8, size=8),
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(
            hidden_size=20, projection_dim=WIDTH, num_hidden_layers=1, num_attention_heads=2, image_size=8,
            intermediate_size=28, patch_size=4,
        )),
        image_normalizer=StableUnCLIPImageNormalizer(WIDTH),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=CLIPTokenizer({word: place for place, word in enumerate(words)}, [], model_max_length=10),
        text_encoder=CLIPTextModel(CLIPTextConfig(
            vocab_size=len(words), hidden_size=12, intermediate_size=14, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=10, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )),
        unet=diffusers.UNet2DConditionModel(
            sample_size=SIDE, in_channels=4, out_channels=4, down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",), block_out_channels=(8,), attention_head_dim=2, norm_num_groups=4,
            class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH, cross_attention_dim=12,
            layers_per_block=1, use_linear_projection=True,
        ),
        scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction", steps_offset=1),
        vae=diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("unclip")
    unclip.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def unclip(folder):
    loaded = example.load_unclip(str(folder), "cpu")
    loaded.set_progress_bar_config(disable=True)
    return loaded


def pixels(picture):
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)


def test_a_picture_for_each_embedding(unclip):
    embeds = 5 * torch.randn(2, WIDTH)
    pictures = example.draw(unclip, embeds, steps=2, seed=4)
    assert [picture.size for picture in pictures] == [(SIDE, SIDE)] * 2
    again = example.draw(unclip, embeds, steps=2, seed=4)
    assert [pixels(picture).tolist() for picture in again] == [pixels(picture).tolist() for picture in pictures]
    assert pixels(pictures[0]).tolist() != pixels(pictures[1]).tolist()


@pytest.mark.parametrize("change", [
    {"seed": 5}, {"prompt": "abc"}, {"steps": 3}, {"guidance": 2.0}, {"noise_level": 900},
    {"image_embeds": 9 * torch.ones(1, WIDTH)}, {"image_embeds": 20 * torch.ones(1, WIDTH)},
])  # fmt: skip
def test_every_option_counts_and_so_does_the_length(unclip, change):
    given = {"image_embeds": torch.ones(1, WIDTH), "steps": 2, "guidance": 8.0, "noise_level": 0, "seed": 4}
    [before], [after] = (example.draw(unclip, **options) for options in (given, given | change))
    assert pixels(before).tolist() != pixels(after).tolist()


@pytest.mark.parametrize("shape", [(1, WIDTH + 1), (WIDTH,), (1, 1, WIDTH)])
def test_features_of_another_encoder_are_refused(unclip, shape):
    with pytest.raises(ValueError, match=rf"draws from features of {WIDTH} numbers and these are \({shape[0]},"):
        example.draw(unclip, torch.ones(shape))


def test_a_model_that_is_not_there(diffusers, tmp_path):
    with pytest.raises(ValueError, match=r"the image model .*nothing cannot be loaded \(.*\); check name and network"):
        example.load_unclip(str(tmp_path / "nothing"), "cpu")


def test_diffusers_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ValueError, match=r'drawing needs diffusers; pip install "adapter-llm\[image\]"'):
        example.load_unclip("anything", "cpu")


def test_from_media_to_a_file(unclip, monkeypatch, tmp_path):
    """The whole script, with a pipeline that says what it was asked."""
    asked = {}

    class Pipeline:
        @classmethod
        def from_pretrained(cls, weights, **options):
            asked.update(weights=weights, **options)
            return cls()

        def image_embeds(self, **media):
            asked.update(media)
            return torch.ones(1, WIDTH)

    monkeypatch.setattr("adapter_llm.Pipeline", Pipeline, raising=False)
    monkeypatch.setattr(example, "load_unclip", lambda model, device: asked.update(model=model) or unclip)
    output = tmp_path / "out.png"
    options = example.parser().parse_args(
        ["--image", "a.jpg", "--image", "b.jpg:0.5", "--output", str(output), "--weights", "mine", "--model", "m",
         "--steps", "2", "--device", "cpu", "--index", "stored"]
    )  # fmt: skip
    out = io.StringIO()
    assert example.generate(options, out) == 0
    assert out.getvalue() == f"{output}\n"
    assert output.read_bytes()[:4] == b"\x89PNG"
    assert asked == {"weights": "mine", "device": "cpu", "index": "stored", "model": "m",
                     "image": [("a.jpg", 1.0), ("b.jpg", 0.5)]}  # fmt: skip


@pytest.mark.parametrize("arguments, message", [
    ([], "generate_image.py: there is nothing to draw from; give --image"),
    (["--image", "a.jpg", "--output", "nowhere/out.png"], "there is no folder nowhere for the picture"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_one_sentence(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(example.cli, "quiet", lambda: None)
    assert example.main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_it_takes_the_media_the_pipeline_takes():
    from adapter_llm.processing import KEYWORDS

    assert tuple(KEYWORDS) == example.MEDIA


def test_help_answers_at_once():
    code = (
        "import contextlib, io, json, runpy, sys\n"
        f"sys.argv = ['generate_image.py', '--help']\n"
        "with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):\n"
        f"    runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
        "heavy = {'torch', 'transformers', 'diffusers', 'PIL', 'numpy'} & set(sys.modules)\n"
        "print(json.dumps([text.getvalue(), sorted(heavy)]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    text, heavy = json.loads(answer.stdout)
    assert heavy == []
    assert "--image PATH[:WEIGHT]" in text and example.UNCLIP in text
