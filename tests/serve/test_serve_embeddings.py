"""/v1/embeddings: the pipeline's vectors of texts, pictures and sounds, in either format."""

import io
import struct
import wave
from base64 import b64decode, b64encode
from random import Random

import folders
import pytest
import torch
from serving import check_error, image, serving

pytestmark = pytest.mark.loopback
TEXTS = ["a dog", "a cat on the grass", "rain", "a dog"]


def sound():
    noise, file = Random(1), io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(16000)
        recording.writeframes(struct.pack("<8000h", *(noise.randrange(-9000, 9000) for _ in range(8000))))
    return file.getvalue()


def vectors(response):
    return torch.tensor([row.embedding for row in response.data])


def test_vectors_are_the_pipelines(client, everything):
    response = client.embeddings.create(model="tiny", input=TEXTS)
    wanted = torch.stack([everything.embed(text=text) for text in TEXTS])
    torch.testing.assert_close(vectors(response), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(vectors(response).norm(dim=1), torch.ones(4))
    assert [row.index for row in response.data] == [0, 1, 2, 3] and response.model == "tiny"
    assert response.usage.prompt_tokens == response.usage.total_tokens > 4


def test_both_formats_are_equal(client, server):
    floats = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    packed = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="base64")
    assert isinstance(packed.data[0].embedding, str)
    for row, other in zip(floats.data, packed.data, strict=True):
        assert struct.unpack("<20f", b64decode(other.embedding)) == tuple(row.embedding)
    assert vectors(client.embeddings.create(model="tiny", input=TEXTS)).tolist() == vectors(floats).tolist()
    plain = server.post({"input": "a dog"}, "/v1/embeddings").json()  # without a format it is OpenAI's default
    assert plain["data"][0]["embedding"] == floats.data[0].embedding


def test_one_text_is_a_list_of_one(client):
    one = client.embeddings.create(model="tiny", input="a dog", dimensions=20)
    two = client.embeddings.create(model="tiny", input=["a dog", "a dog"])
    torch.testing.assert_close(vectors(one)[[0, 0]], vectors(two))
    assert 2 * one.usage.prompt_tokens == two.usage.prompt_tokens


def test_pictures_and_sounds_in_the_same_space(client, everything):
    recording = sound()
    part = {"type": "input_audio", "input_audio": {"data": b64encode(recording).decode(), "format": "wav"}}
    response = client.embeddings.create(model="tiny", input=["a dog", image(1), part, {"type": "text", "text": "rain"}])
    wanted = [
        everything.embed(text="a dog"), everything.embed(image=folders.picture(1)), everything.embed(audio=recording),
        everything.embed(text="rain"),
    ]  # fmt: skip
    torch.testing.assert_close(vectors(response), torch.stack(wanted), rtol=0, atol=1e-6)
    alone = client.embeddings.create(model="tiny", input=image(1))
    torch.testing.assert_close(vectors(alone)[0], wanted[1], rtol=0, atol=1e-6)
    assert alone.usage.prompt_tokens == 0


def test_many_are_encoded_in_batches(client, everything):
    texts = [f"a dog and {number} cats" for number in range(40)]
    response = client.embeddings.create(model="tiny", input=texts)
    torch.testing.assert_close(vectors(response)[[0, 17, 39]], torch.stack([
        everything.embed(text=texts[number]) for number in (0, 17, 39)
    ]), rtol=0, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("given, param, message", [
    (None, "input", "input must be a text, or a list of 1 to 2048 texts or content parts"),
    ([], "input", "input must be a text"),
    (["a"] * 2049, "input", "1 to 2048"),
    ("", "input", 'input must be a text with words in it or a content part, not ""'),
    (["a", "  "], "input[1]", "a text with words in it"),
    ([1, 2], "input[0]", "input[0] holds token ids, and the text encoder has its own"),
    ([[1, 2]], "input[0]", "token ids"),
    (["a", {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "input[1].image_url.url", ""),
    ({"type": "image_url"}, "input.image_url.url", "is missing"),
])  # fmt: skip
def test_what_cannot_be_embedded_is_named(server, given, param, message):
    assert message in check_error(server.post({"input": given}, "/v1/embeddings"), 400, param)


@pytest.mark.parametrize("more, param", [
    ({"dimensions": 7}, "dimensions"), ({"encoding_format": "int8"}, "encoding_format"), ({"size": 1}, "size"),
])  # fmt: skip
def test_what_is_not_done_is_refused(server, more, param):
    check_error(server.post({"input": "a dog", **more}, "/v1/embeddings"), 400, param)


def test_weights_without_a_text_encoder_say_so(pipe):
    with serving(pipe) as running:
        assert "these weights take image, video, imu, not text" in check_error(
            running.post({"input": ["a dog"]}, "/v1/embeddings"), 400, "input[0]"
        )
