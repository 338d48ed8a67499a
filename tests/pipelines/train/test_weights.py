import pickle

import pytest
import torch
from safetensors.torch import save_file

import tokenpool as tp
from pipelines.errors import UserError
from pipelines.train.weights import load_into, read_weights


def vit(image_size=16, patch_size=4, width=16, num_classes=5):
    torch.manual_seed(image_size + num_classes)
    return tp.build_vit(image_size, patch_size, width, 2, 2, num_classes)


@pytest.fixture
def images():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["folder", "safetensors", "pth", "wrapped"])
def test_the_same_shape_gives_the_same_model(tmp_path, images, kind):
    source = vit().eval()
    path = tmp_path / {"folder": "m", "safetensors": "m.safetensors"}.get(kind, "m.pth")
    if kind == "folder":
        tp.save(source, path)
    elif kind == "safetensors":
        save_file(source.state_dict(), path)
    else:
        state = source.state_dict()
        torch.save({"model": state} if kind == "wrapped" else state, path)
    target = load_into(vit(num_classes=5), str(path)).eval()
    assert torch.equal(target(images), source(images))


def test_another_class_count_keeps_the_body_and_the_fresh_head(tmp_path, images):
    source, target = vit().eval(), vit(num_classes=7).eval()
    head = target.head.weight.clone()
    tp.save(source, tmp_path / "m")
    load_into(target, str(tmp_path / "m"))
    assert torch.equal(target.head.weight, head)
    assert torch.equal(target.forward_features(images), source.forward_features(images))


def test_positions_are_resampled_for_another_image_size(tmp_path):
    tp.save(vit(image_size=16), tmp_path / "m")
    target = load_into(vit(image_size=32), str(tmp_path / "m"))
    assert target.pos_embed.shape == (1, 65, 16)
    small, large = vit(image_size=16).pos_embed[:, 1:], target.pos_embed[:, 1:]
    # A smooth enlargement keeps the mean.
    torch.testing.assert_close(small.mean(1), large.mean(1), atol=5e-3, rtol=0)


def test_what_does_not_fit_is_named(tmp_path):
    tp.save(vit(width=16), tmp_path / "m")
    with pytest.raises(UserError, match=r"does not fit: .* \(.*\) there and"):
        load_into(vit(width=24), str(tmp_path / "m"))
    with pytest.raises(UserError, match="no weights at"):
        read_weights("no_such_model_xyz")
    (tmp_path / "m.txt").write_text("x")
    with pytest.raises(UserError, match="weights are read from"):
        read_weights(str(tmp_path / "m.txt"))


class Payload:
    ran = False

    def __reduce__(self):
        return (setattr, (Payload, "ran", True))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path):
    path = tmp_path / "evil.pth"
    with path.open("wb") as file:
        pickle.dump({"model": Payload()}, file)
    with pytest.raises(UserError, match="cannot be read as weights alone"):
        read_weights(str(path))
    assert not Payload.ran
