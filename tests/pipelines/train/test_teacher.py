"""Teachers: our own models and timm's, which were trained on other sizes and colours."""

import pytest
import timm
import torch
from small_jobs import small_job

import tokenpool as tp
from pipelines.config import DistillConfig, TrainConfig
from pipelines.data.augment import normalize
from pipelines.errors import UserError
from pipelines.train.model import build_teacher

OURS = ((0.2, 0.3, 0.4), (0.5, 0.4, 0.3))


@pytest.fixture
def pixels():
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=draw)


def job(teacher, tmp_path):
    train = TrainConfig(distill=DistillConfig(teacher=teacher))
    return small_job(tmp_path, tmp_path, train=train)


def teach(teacher, tmp_path, pixels):
    model = build_teacher(job(str(teacher), tmp_path), torch.device("cpu"), OURS)
    with torch.no_grad():
        return model(normalize(pixels, *OURS)), model.train()


def without_network(monkeypatch):
    """timm's models with weights drawn at random, in place of those it would fetch."""
    create = timm.create_model

    def made(name, pretrained):
        assert pretrained
        torch.manual_seed(1)
        return create(name, num_classes=10)

    monkeypatch.setattr(timm, "create_model", made)
    return made


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"])
def test_a_timm_teacher_sees_images_as_timm_would_show_them(monkeypatch, tmp_path, pixels, name):
    own = without_network(monkeypatch)(name, True).eval()
    logits, teacher = teach(name, tmp_path, pixels)
    config = own.pretrained_cfg
    inputs = normalize(pixels, config["mean"], config["std"])
    if "vit" in name:
        assert config["mean"] == (0.5, 0.5, 0.5)  # not what other models have
        inputs = torch.nn.functional.interpolate(inputs, (224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(logits, own(inputs), atol=1e-4, rtol=1e-4)
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_saved_teacher_sees_the_students_images(tmp_path, pixels):
    torch.manual_seed(0)
    own = tp.build_vit(32, 8, 24, 2, 2, 10).eval()
    tp.save(own, tmp_path / "teacher")
    logits, _ = teach(tmp_path / "teacher", tmp_path, pixels)
    with torch.no_grad():
        assert torch.equal(logits, own(normalize(pixels, *OURS)))


def test_a_saved_teacher_that_knows_its_colours_and_classes_gets_both(tmp_path, pixels):
    torch.manual_seed(0)
    own = tp.build_vit(32, 8, 24, 2, 2, 10).eval()
    torch.nn.init.normal_(own.head.weight)
    colours = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    names = [str(9 - i) for i in range(10)]
    own.pretrained_cfg = {"mean": colours[0], "std": colours[1], "label_names": names}
    own.pretrained_cfg["num_classes"] = 10
    tp.save(own, tmp_path / "teacher")
    model = build_teacher(
        job(str(tmp_path / "teacher"), tmp_path), torch.device("cpu"), OURS, names[::-1]
    )
    with torch.no_grad():
        expected = own(normalize(pixels, *colours)).flip(1)
        torch.testing.assert_close(model(normalize(pixels, *OURS)), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"teacher .*class 'x' is none of the model's"):
        build_teacher(
            job(str(tmp_path / "teacher"), tmp_path), torch.device("cpu"), OURS, ["x", *names[1:]]
        )


def test_a_teacher_of_other_channels_is_refused(tmp_path, pixels):
    tp.save(tp.build_vit(32, 8, 24, 1, 2, 10, in_chans=1), tmp_path / "grey")
    with pytest.raises(UserError, match="images of 1 channels, the data has 3"):
        teach(tmp_path / "grey", tmp_path, pixels)


def test_what_cannot_teach_is_refused_in_one_line(monkeypatch, tmp_path, pixels):
    tp.save(tp.build_vit(32, 8, 24, 1, 2, 7), tmp_path / "seven")
    with pytest.raises(UserError, match="knows 7 classes, the data has 10"):
        teach(tmp_path / "seven", tmp_path, pixels)
    with pytest.raises(UserError, match="no teacher nobody"):
        teach("nobody", tmp_path, pixels)

    def no_network(name, pretrained):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(UserError, match="no weights for resnet10t: no route to host: give"):
        teach("resnet10t", tmp_path, pixels)
