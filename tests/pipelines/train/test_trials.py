import pytest

from pipelines.errors import UserError
from pipelines.train import ray_job
from pipelines.train.trials import short_reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Traceback\n  File x\npipelines.errors.UserError: no data at x\n", "no data at x"),
        ("frames\nRuntimeError: the loss is nan", "the loss is nan"),
        ("a\nValueError: k is 0: use 1\n\n", "ValueError: k is 0: use 1"),
        ("just a line", "just a line"),
    ],
)
def test_the_telling_line_of_a_long_error(text, reason):
    assert short_reason(RuntimeError(text)) == reason


class Trainer:
    def __init__(self, errors):
        self.errors = errors

    def fit(self):
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize(
    ("cause", "max_failures", "num_errors", "left", "fails"),
    [
        (OSError("worker died"), 3, 2, 0, False),  # comes back after two
        (OSError("worker died"), 1, 5, 3, True),  # two tries and no more
        (UserError("no compiler"), 3, 5, 4, True),  # not tried again
    ],
)
def test_only_what_may_pass_is_tried_again(
    monkeypatch, cause, max_failures, num_errors, left, fails
):
    from ray.train.v2.api.exceptions import WorkerGroupError

    errors = [WorkerGroupError("x", {0: cause}) for _ in range(num_errors)]
    monkeypatch.setattr(ray_job, "_make_trainer", lambda job: Trainer(errors))

    class Job:
        job_id = "j"

        class workers:
            pass

    Job.workers.max_failures = max_failures
    if fails:
        with pytest.raises(WorkerGroupError):
            ray_job.run_trainer(Job)
    else:
        ray_job.run_trainer(Job)
    assert len(errors) == left
