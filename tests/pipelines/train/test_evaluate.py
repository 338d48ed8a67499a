import pytest
import torch
from torch import nn

from pipelines.train.evaluate import evaluate, evaluate_each


def batches(sizes, classes, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(n, 3, 2, 2, generator=draw), torch.randint(classes, (n,), generator=draw))
        for n in sizes
    ]


@pytest.mark.parametrize("classes", [3, 12])
def test_every_sample_counts_once(classes):
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Flatten(), nn.Linear(12, classes)).train() for _ in range(2)]
    data = batches([8, 8, 5], classes)
    images, labels = torch.cat([x for x, _ in data]), torch.cat([y for _, y in data])
    scores = evaluate_each(models, data, lambda x: x, torch.device("cpu"), at_a_time=3)
    for model, score in zip(models, scores, strict=True):
        assert model.training
        logits = model(images).detach()
        ranks = (logits > logits.gather(1, labels[:, None])).sum(1)  # classes above the right one
        assert score["top1"] == pytest.approx((ranks == 0).double().mean().item(), abs=1e-12)
        assert score["top5"] == pytest.approx((ranks < 5).double().mean().item(), abs=1e-12)
        loss = nn.functional.cross_entropy(logits, labels).item()
        assert score["loss"] == pytest.approx(loss, abs=1e-6)
    if classes == 3:
        assert scores[0]["top5"] == 1.0  # there are no five classes
    assert evaluate(models[1], data, lambda x: x, torch.device("cpu"))["top1"] == scores[1]["top1"]
