"""A base that is trained already: the same predictions, however its images were normalised."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import tokenpool as tp
from pipelines.config import DataConfig, TrainConfig, WorkersConfig
from pipelines.data.augment import normalize
from pipelines.errors import UserError
from pipelines.search.loaded_base import save_loaded
from pipelines.train.normalization import renormalize
from pipelines.train.spec import ModelSpec, TrainJob


def make_job(storage, num_classes=5, width=16):
    return TrainJob(
        job_id="base-w16",
        storage=storage,
        data=DataConfig(path=storage / "none", image_size=16),
        model=ModelSpec(
            width=width, heads=2, depth=2, patch_size=4, image_size=16, num_classes=num_classes
        ),
        train=TrainConfig(epochs=10),
        workers=WorkersConfig(),
    )


def vit() -> VisionTransformer:
    torch.manual_seed(3)
    return tp.build_vit(16, 4, 16, 2, 2, 5).eval()


def test_the_folder_of_a_saved_model_is_taken_as_it_is(tmp_path):
    trained, images = vit(), torch.randn(4, 3, 16, 16)
    tp.save(trained, tmp_path / "mine")
    loaded = tp.load(save_loaded(make_job(tmp_path / "jobs"), str(tmp_path / "mine"))).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), trained(images))


def test_for_other_classes_or_of_another_width_it_is_refused(tmp_path):
    tp.save(vit(), tmp_path / "mine")
    with pytest.raises(UserError, match="knows 5 classes, the data has 7"):
        save_loaded(make_job(tmp_path, num_classes=7), str(tmp_path / "mine"))
    with pytest.raises(UserError, match="does not fit"):
        save_loaded(make_job(tmp_path, width=32), str(tmp_path / "mine"))
    with pytest.raises(UserError, match="no weights at"):
        save_loaded(make_job(tmp_path), "nowhere")


def test_renormalized_it_says_the_same_of_the_same_pixels():
    model, pixels = vit(), torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    known = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    given = ([0.2, 0.6, 0.45], [0.31, 0.18, 0.27])
    with torch.no_grad():
        expected = model(normalize(pixels, *known))
        assert not torch.allclose(model(normalize(pixels, *given)), expected, atol=1e-2)
        renormalize(model, known, given)
        assert torch.allclose(model(normalize(pixels, *given)), expected, atol=1e-5)
