"""Traces and un-pooling: every original position gets its cluster's token back."""

import pytest
import torch

import tokenpool as tp

SCHEDULE = (13, 13, 9, 5)


def model_and_images(**options):
    torch.manual_seed(0)
    model = tp.build_vit(16, 4, 24, 4, 3, 5, **options).eval()
    return model, torch.randn(2, 3, 16, 16)


@pytest.mark.parametrize("method", tp.METHODS)
def test_every_position_gets_a_token_of_the_output(method):
    model, x = model_and_images(reg_tokens=1)
    tp.pool(model, SCHEDULE, method)
    tokens, found = tp.trace(model, x)
    kept = tp.pooling_of(model).realised[-1]
    # Block 2 keeps what comes in: nothing to trace there.
    if method not in ("grid", "tome"):
        assert [layer.block for layer in found.layers] == [0, 2, 3]
    whole = tp.unpool(tokens, found)
    assert whole.shape == (2, 2 + 16, 24)
    assert torch.equal(whole[:, :2], tokens[:, :2])
    place = found.assignment()
    assert place.shape == (2, 16) and place.max() == kept - 1
    for image in range(2):
        for position in range(16):
            assert torch.equal(
                whole[image, 2 + position], tokens[image, 2 + place[image, position]]
            )
    assert torch.equal(tp.unpool(tokens[:, 2:], found), whole[:, 2:])


def test_the_assignment_is_composed_over_layers():
    model, x = model_and_images()
    tp.pool(model, SCHEDULE)
    _, found = tp.trace(model, x)
    first, second, third = (layer.assignment for layer in found.layers)
    by_hand = [[third[0, second[0, first[0, i]]].item() for i in range(16)]]
    assert found.assignment()[:1].tolist() == by_hand
    assert torch.equal(found.assignment(after=1), first)
    assert torch.equal(found.assignment(after=0), first)


def test_gradients_come_back_through_unpooling():
    model, x = model_and_images()
    tp.pool(model, SCHEDULE)
    tokens, found = tp.trace(model, x)
    leaf = tokens.detach().requires_grad_()
    tp.unpool(leaf, found)[:, 1:].sum().backward()
    sizes = torch.zeros(2, 5).scatter_add(1, found.assignment(), torch.ones(2, 16))
    torch.testing.assert_close(leaf.grad[:, 1:, 0], sizes)


def test_dropped_tokens_go_to_the_nearest_kept_one():
    model, x = model_and_images()
    tp.pool(model, (9, 9, 9, 9), "powerbert")
    with tp.record(model, keep_tokens=True) as found:
        model(x)
    layer = found.layers[0]
    distance = torch.cdist(layer.tokens.double(), layer.pooled.double())
    assert torch.equal(layer.assignment, distance.argmin(-1))


def test_recording_ends_and_keeps_the_last_pass():
    model, x = model_and_images()
    tp.pool(model, SCHEDULE)
    with tp.record(model) as found:
        model(x)
        model(x[:1])
    assert len(found.layers) == 3 and found.layers[0].assignment.shape[0] == 1
    model(x)
    assert found.layers[0].assignment.shape[0] == 1


def test_what_does_not_fit_is_refused():
    model, x = model_and_images()
    tp.pool(model, SCHEDULE)
    tokens, found = tp.trace(model, x)
    with pytest.raises(ValueError, match="2 images of 5 patch tokens"):
        tp.unpool(tokens[:, :3], found)
    _, nothing = tp.trace(tp.pool(model, tp.Schedule.dense(4, 16)), x)
    with pytest.raises(ValueError, match="no layer pooled"):
        nothing.assignment()
