"""A base that is trained already: the same predictions, however its images were normalised."""

import logging
import shutil

import pytest
import timm
import torch
from small_jobs import small_job
from timm.models.vision_transformer import VisionTransformer

import tokenpool as tp
from pipelines.config import SearchConfig
from pipelines.data.augment import normalize
from pipelines.errors import UserError
from pipelines.models.normalization import renormalize
from pipelines.models.outline import outline
from pipelines.search.job_specs import base_job
from pipelines.search.loaded_base import save_loaded, save_loaded_noted
from pipelines.search.search_space import count_parameters, dense_gmacs, is_plain, vit_spec


def make_job(storage, num_classes=5, width=16):
    data = storage / "none"
    shape = {"depth": 2, "patch_size": 4, "image_size": 16, "num_classes": num_classes}
    return small_job(storage, data, "base-w16", width=width, **shape)


def vit() -> VisionTransformer:
    torch.manual_seed(3)
    return tp.build_vit(16, 4, 16, 2, 2, 5).eval()


def test_the_folder_of_a_saved_model_is_taken_as_it_is(tmp_path):
    trained, images = vit(), torch.randn(4, 3, 16, 16)
    tp.save(trained, tmp_path / "mine")
    loaded = tp.load(save_loaded(make_job(tmp_path / "jobs"), str(tmp_path / "mine"))).eval()
    with torch.no_grad():
        assert torch.equal(loaded(images), trained(images))


def test_what_was_changed_and_assumed_comes_back_to_be_said(tmp_path):
    """Loaded by a worker, whose log the terminal does not show."""
    torch.save({"state_dict": vit().state_dict()}, tmp_path / "plain.pth")
    path, notes = save_loaded_noted(make_job(tmp_path / "jobs"), str(tmp_path / "plain.pth"))
    assert tp.load(path).num_classes == 5
    assert len(notes) == 1 and "the file does not say it: taken as heads 2" in notes[0]
    assert not [h for h in logging.getLogger("pipelines").handlers if hasattr(h, "lines")]


def test_for_other_classes_or_of_another_width_it_is_refused(tmp_path):
    tp.save(vit(), tmp_path / "mine")
    with pytest.raises(UserError, match="knows 5 classes, the model is for 7"):
        save_loaded(make_job(tmp_path, num_classes=7), str(tmp_path / "mine"))
    with pytest.raises(UserError, match="does not fit"):
        save_loaded(make_job(tmp_path, width=32), str(tmp_path / "mine"))
    with pytest.raises(UserError, match="no weights at"):
        save_loaded(make_job(tmp_path), "nowhere")
    for channels in (1, 4):
        shape = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
        grey = VisionTransformer(**shape, num_classes=5, in_chans=channels)
        tp.save(grey, tmp_path / "grey")
        with pytest.raises(UserError, match=f"images of {channels} channels, the data has 3"):
            save_loaded(make_job(tmp_path), str(tmp_path / "grey"))


def test_renormalized_it_says_the_same_of_the_same_pixels():
    model, pixels = vit(), torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    known = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    given = ([0.2, 0.6, 0.45], [0.31, 0.18, 0.27])
    with torch.no_grad():
        expected = model(normalize(pixels, *known))
        assert not torch.allclose(model(normalize(pixels, *given)), expected, atol=1e-2)
        renormalize(model, known, given)
        assert torch.allclose(model(normalize(pixels, *given)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["folder", "store"])
def test_a_checkpoint_that_is_gone_is_counted_by_the_copy_that_was_taken(
    tmp_path, kind, monkeypatch
):
    """A resumed search has its costs from it, also where the copy lies in an object store alone."""
    monkeypatch.setenv("TOKENPOOL_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(3)
    size = {"img_size": 32, "patch_size": 4, "embed_dim": 96, "num_heads": 3, "depth": 2}
    trained = timm.create_model("vit_small_patch16_dinov3", num_classes=10, **size).eval()
    checkpoint = tp.save(trained, tmp_path / "mine")
    train = {"epochs": 1, "batch_size": 8, "warmup_epochs": 0.5}
    config = SearchConfig.model_validate(
        {
            "name": "s",
            "storage": str(tmp_path / "runs"),
            "data": {"path": str(tmp_path / "none"), "image_size": 32},
            "model": {"patch_size": 4, "depth": 2},
            "space": {"widths": [{"width": 96, "heads": 3, "checkpoint": str(checkpoint)}]},
            "base": {"train": train},
            "screen": {},
            "finals": {"trials": 1, "train": train},
        }
    )
    if kind == "store":  # one of another kind than searches are kept in, and as good
        config = config.model_copy(update={"storage": f"memory://{tmp_path.name}"})
    (width,) = config.space.widths
    loaded = save_loaded(base_job(config, width, 10), str(checkpoint))
    shutil.rmtree(checkpoint)
    if kind == "store":
        assert loaded.startswith("memory://") and not config.search.jobs.exists()
        assert tp.vit_spec(outline(base_job(config, width, 10).model, loaded)) == tp.vit_spec(
            trained
        )
    assert vit_spec(config, width, 10) == tp.vit_spec(trained)
    assert dense_gmacs(config, width, 10) == tp.macs(trained).gmacs
    assert count_parameters(config, width, 10) == sum(p.numel() for p in trained.parameters())
    assert not is_plain(config, width, 10)
    plain = tp.build_vit(32, 4, 96, 2, 3, 10)
    assert dense_gmacs(config, width, 10) != tp.macs(plain).gmacs
