"""PoWER-BERT's schedule search: what it multiplies, what a penalty does, what it leaves behind."""

import pytest
import torch
from timm.models.vision_transformer import Block

import tokenpool as tp
from tokenpool.study import soft_extract


def small():
    torch.manual_seed(0)
    return tp.build_vit(16, 4, 24, 3, 3, 4).eval()


def batches(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield (
            torch.randn(4, 3, 16, 16, generator=generator),
            torch.randint(0, 4, (4,), generator=generator),
        )


def test_vectors_scale_tokens_by_their_rank():
    model = small()
    x = torch.randn(2, 17, 24, generator=torch.Generator().manual_seed(1))
    plain = model.blocks[0](x)
    tp.pool(model, tp.Schedule.dense(3, 16))
    # The vector keeps the 5 most significant tokens: what PoWER-BERT pruning keeps.
    vector = torch.nn.Parameter((torch.arange(16) < 5).float())
    scaled = soft_extract.SoftExtractBlock(model.blocks[0], vector, 1)(x)
    tp.pool(model, (5, 5, 5), "powerbert")
    kept = model.blocks[0](x)
    torch.testing.assert_close(scaled[:, 0], plain[:, 0], atol=1e-5, rtol=1e-5)
    alive = scaled[:, 1:].abs().sum(-1) > 0
    assert alive.sum(1).tolist() == [5, 5]
    torch.testing.assert_close(
        scaled[:, 1:][alive].view(2, 5, 24), kept[:, 1:], atol=1e-5, rtol=1e-5
    )


def test_schedules_are_read_off_the_vectors():
    vectors = torch.tensor([[1.0, 1, 1, 0.9], [1, 1, 1, 1], [0.5, 0.2, 0, 0], [1, 1, 0, 0]])
    assert soft_extract.schedule_from_vectors(vectors) == (3, 3, 1, 1)
    assert soft_extract.schedule_from_vectors(torch.ones(2, 197)) == (197, 197)


def test_a_larger_penalty_gives_a_shorter_schedule():
    model = small()
    results = [
        tp.powerbert_schedule(model, batches(10), penalty, learning_rate=0.05)
        for penalty in (0.0, 1e-5, 1.0)
    ]
    masses = [sum(result.schedule) for result in results]
    assert masses[0] >= masses[1] > masses[2]
    assert results[2].schedule[0] < 10
    for result in results:
        assert result.vectors.min() >= 0 and result.vectors.max() <= 1
        assert len(result.losses) == 10
        tp.pool(model, result.schedule, "powerbert")(torch.randn(1, 3, 16, 16))


def test_later_layers_pay_more():
    result = tp.powerbert_schedule(small(), batches(10), 0.3, learning_rate=0.02)
    assert result.schedule[0] >= result.schedule[1] >= result.schedule[2]


def test_the_model_is_given_back_as_it_was():
    model = tp.pool(small(), (9, 8, 7), "kmeans").train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.blocks[0].norm1.weight.requires_grad_(False)
    tp.powerbert_schedule(model, batches(2), 0.1)
    assert tp.pooling_of(model)[:2] == ((9, 8, 7), "kmeans")
    assert model.training and not model.blocks[0].norm1.weight.requires_grad
    assert model.blocks[1].norm1.weight.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])

    def failing():
        yield next(batches(1))
        raise RuntimeError("the disk is gone")

    plain = small()
    with pytest.raises(RuntimeError, match="the disk is gone"):
        tp.powerbert_schedule(plain, failing(), 0.1)
    assert all(type(block) is Block for block in plain.blocks)


def test_the_weights_learn_along_if_asked_to():
    model = small()
    before = model.head.weight.clone()
    tp.powerbert_schedule(model, batches(2), 0.1, model_learning_rate=1e-2)
    assert not torch.equal(model.head.weight, before)


def test_bad_input_is_refused():
    for penalty in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="penalty is"):
            tp.powerbert_schedule(small(), batches(1), penalty)
    with pytest.raises(ValueError, match="no batches"):
        tp.powerbert_schedule(small(), [], 0.1)
