"""A stopped trial frees its workers: the next one, on the same CPUs, runs to its end.

Slow because two real training jobs start; without the State API the second waits for ever.
"""

from pathlib import Path

import pytest
import ray
from small_jobs import small_job
from thinning import fast

from cluster.session import ray_session
from pipelines.config import TrainConfig, WorkersConfig
from pipelines.trials.run_trials import run_trials


class Notes:
    def __init__(self):
        self.events = []

    def report(self, job_id, report):
        """Ends the job `first` at its first report."""
        self.events.append((job_id, report.epoch))
        return job_id != "first"

    def finished(self, job_id, report, checkpoint):
        self.events.append((job_id, "finished"))

    def failed(self, job_id, reason):
        self.events.append((job_id, reason))


@pytest.mark.parametrize("workers", fast(1, [1, 2]))
def test_a_stopped_trial_leaves_its_cpus_to_the_next(tmp_path, digits, workers):
    """Each job takes all CPUs there are, with one worker or two."""

    def job_of(name, epochs):
        train = TrainConfig(epochs=epochs, batch_size=64, lr=1e-3, warmup_epochs=0.5)
        gang = WorkersConfig(num_workers=workers, cpus_per_worker=0.9)
        return small_job(tmp_path / "jobs", digits, name, gang, train)

    notes = Notes()
    with ray_session(num_cpus=workers) as cluster:
        assert cluster.concurrent_jobs(workers, 0.9, 0.0) == 1
        run_trials(
            [job_of("first", 500), job_of("second", 2)],
            max_concurrent=1,
            listener=notes,
            directory=tmp_path / "tune",
            name="stop",
        )
        free = ray.available_resources()["CPU"]
    assert ("first", "finished") in notes.events and ("first", 500) not in notes.events
    assert [event for event in notes.events if event[0] == "second"] == [
        ("second", 1),
        ("second", 2),
        ("second", "finished"),
    ]
    assert free > 0.85 * workers


@pytest.mark.slow
def test_a_job_that_had_finished_unheard_is_finished_and_not_stopped(tmp_path, digits):
    """The driver died between a job's last checkpoint and its own record of it."""
    train = TrainConfig(epochs=1, batch_size=64, lr=1e-3, warmup_epochs=0.5)
    workers = WorkersConfig(num_workers=1, cpus_per_worker=0.9)
    job = small_job(tmp_path / "jobs", digits, "only", workers, train)

    class Ends(Notes):
        def finished(self, job_id, report, checkpoint):
            self.events.append((report.epoch, report.top1_minival, checkpoint))

    first, second = Ends(), Ends()
    with ray_session(num_cpus=2):
        for notes in (first, second):
            run_trials(
                [job],
                max_concurrent=1,
                listener=notes,
                directory=tmp_path / "tune",
                name="again",
            )
    assert first.events == second.events and first.events[-1][0] == 1
    assert Path(first.events[-1][2], "model", "model.safetensors").is_file()
