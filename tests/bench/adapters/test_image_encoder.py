"""Image features against the libraries that the formats come from."""

import numpy as np
import pytest
import torch
from tiny import picture, tiny_image_encoder

from bench.adapters.image_encoder import ImageEncoder
from bench.contracts import BenchError

CLIP = "bench/mini/weights/clip"
IMAGES = [picture(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_image_encoder(tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def theirs(folder):
    """transformers' own processor and model."""
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    processor = CLIPImageProcessor(size=32, crop_size=32)  # as diffusers makes it

    def run(images):
        pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
        pixels = processor(images=pictures, return_tensors="pt").pixel_values
        with torch.no_grad():
            return pixels, model(pixels, output_hidden_states=True), model

    return run


def test_transformers_folders_give_what_transformers_gives(folder, theirs):
    pixels, out, model = theirs(IMAGES)
    pooled, patches = ImageEncoder(str(folder)), ImageEncoder(str(folder), "patches")
    assert (pooled.width, patches.width) == (24, 32)
    torch.testing.assert_close(pooled(IMAGES), out.image_embeds, rtol=0, atol=2e-2)  # resizing rounds differently
    torch.testing.assert_close(patches(IMAGES), out.hidden_states[-2], rtol=0, atol=5e-2)
    assert (pooled(IMAGES)[0] - pooled(IMAGES)[1]).abs().max() > 0.1
    ours = torch.stack([pooled._prepared(image) for image in IMAGES])
    torch.testing.assert_close(ours, pixels, rtol=0, atol=2.1 / 255 / 0.26)  # at most two grey levels
    with torch.no_grad():
        torch.testing.assert_close(pooled(IMAGES), model(ours).image_embeds)


def test_no_image_is_a_zero_vector_or_the_patches_of_zeros(folder, theirs):
    _, _, model = theirs(IMAGES[:1])
    assert torch.equal(ImageEncoder(str(folder)).blank, torch.zeros(24))
    with torch.no_grad():
        expected = model(torch.zeros(1, 3, 32, 32), output_hidden_states=True).hidden_states[-2][0]
    torch.testing.assert_close(ImageEncoder(str(folder), "patches").blank, expected)
    assert expected.shape == (17, 32)


def test_open_clip_folders_give_what_open_clip_gives():
    import open_clip
    from PIL import Image

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{CLIP}")
    encoder = ImageEncoder(CLIP)
    with torch.no_grad():
        x = torch.stack([transform(Image.fromarray(image.transpose(1, 2, 0))) for image in IMAGES])
        torch.testing.assert_close(encoder(IMAGES), model.eval().encode_image(x))
        tokens = open_clip.get_tokenizer(f"local-dir:{CLIP}")(["a photo of a dog"])
        torch.testing.assert_close(encoder.words(["a photo of a dog"]), model.encode_text(tokens))
    assert encoder.width == 256
    with pytest.raises(BenchError, match="gives pooled features only; give the same CLIP in transformers' format"):
        _ = ImageEncoder(CLIP, "patches").width


def test_features_of_pixels_are_those_of_the_image_and_carry_gradients():
    encoder = ImageEncoder(CLIP)
    pixels = torch.from_numpy(np.stack(IMAGES) / np.float32(255)).requires_grad_()
    features = encoder.of_pixels(pixels)
    torch.testing.assert_close(features, encoder(IMAGES), rtol=0, atol=1e-4)
    features.square().sum().backward()
    assert pixels.grad.abs().max() > 0


def test_an_image_is_encoded_once_and_order_and_repetition_do_not_matter(monkeypatch):
    encoder = ImageEncoder(CLIP)
    first = encoder(IMAGES)
    monkeypatch.setattr(encoder, "_run", None)
    assert torch.equal(encoder([IMAGES[2], IMAGES[0], IMAGES[2]]), first[[2, 0, 2]])


def test_words_without_a_text_tower_and_absent_folders_are_told(folder):
    with pytest.raises(BenchError, match="has no text tower; give the folders method.encoder.text_encoder"):
        ImageEncoder(str(folder)).words(["a dog"])
    assert ImageEncoder(str(folder)).missing() is None
    lacking = ImageEncoder("h94/IP-Adapter/models/image_encoder").missing()
    assert "hf download h94/IP-Adapter --include 'models/image_encoder*' --local-dir" in lacking
    with pytest.raises(
        BenchError, match="config.json cannot be read there; give a folder in transformers' or open_clip's"
    ):
        _ = ImageEncoder("results").width
