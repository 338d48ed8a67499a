import pytest
import torch
import torch.nn.functional as F

from pipelines.config import DistillConfig
from pipelines.train.losses import distillation_loss, training_loss


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator)


def test_soft_distillation_is_the_divergence_written_out(logits):
    student, teacher = logits
    config = DistillConfig(teacher="x", temperature=2.0)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    expected = (p * (p / q).log()).sum(1).mean() * 4
    torch.testing.assert_close(distillation_loss(student, teacher, config), expected)
    assert distillation_loss(student, student, config).abs() < 1e-6


def test_hard_distillation_takes_the_teachers_choice_for_the_label(logits):
    student, teacher = logits
    config = DistillConfig(teacher="x", kind="hard")
    expected = -student.log_softmax(1)[torch.arange(6), teacher.argmax(1)].mean()
    torch.testing.assert_close(distillation_loss(student, teacher, config), expected)


def test_the_shares_add_up_and_no_teacher_means_cross_entropy(logits):
    student, teacher = logits
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    config = DistillConfig(teacher="x", weight=0.25)
    mixed = training_loss(student, labels, teacher, config)
    plain = training_loss(student, labels, None, None)
    torch.testing.assert_close(plain, F.cross_entropy(student, labels))
    torch.testing.assert_close(
        mixed, 0.75 * plain + 0.25 * distillation_loss(student, teacher, config)
    )
