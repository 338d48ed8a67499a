import pytest
from ray.exceptions import ActorDiedError
from ray.tune.search import Searcher

from pipelines.config import WorkersConfig
from pipelines.errors import UserError
from pipelines.storage.store import StoreAway
from pipelines.train.draining import NodeDrained
from pipelines.trials import ray_job
from pipelines.trials.job_failures import failure_of
from pipelines.trials.run_trials import TrialRequest, _List, _Queue, short_reason


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


def test_jobs_are_given_out_while_there_is_room():
    room = [2]
    requests = [TrialRequest(job, gmacs=0.0) for job in map(Job, "abcd")]
    queue = _Queue(_List(requests), lambda running, waiting: min(room[0], running + waiting), None)
    assert [queue.suggest(name)["trial_id"] for name in "12"] == ["a", "b"]
    assert queue.suggest("3") is None
    room[0] = 3  # a node joined
    assert queue.suggest("3")["trial_id"] == "c"
    room[0] = 1  # two left: their jobs wait for room by themselves
    queue.on_trial_complete("1", error=True)
    queue.on_trial_complete("2")
    assert queue.suggest("4") is None
    queue.on_trial_complete("3")
    assert queue.suggest("4")["trial_id"] == "d"
    assert queue.suggest("5") is None, "of what runs there may come more"
    queue.on_trial_complete("4")
    assert queue.suggest("5") == Searcher.FINISHED


class Job:
    store = "s3://bucket/jobs"  # nothing lies in a folder
    address = "s3://bucket/jobs/j"
    full_disk_minutes = 15.0

    def __init__(self, job_id):
        self.job_id = job_id

    def model_dump(self, mode):
        return {}


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

    job = Job("j")
    job.workers = WorkersConfig(max_failures=max_failures)
    if fails:
        with pytest.raises(WorkerGroupError):
            ray_job.run_trainer(job)
    else:
        ray_job.run_trainer(job)
    assert len(errors) == left


@pytest.mark.parametrize(
    ("cause", "says"),
    [
        (NodeDrained("j: host-2 is to be taken away"), "goes on elsewhere, from where it was"),
        (StoreAway("storage s3://b: nothing answers"), "tried again from its last checkpoint"),
    ],
)
def test_what_is_nobodys_fault_is_not_counted_as_one(monkeypatch, cause, says):
    from ray.train.v2.api.exceptions import WorkerGroupError

    errors = [WorkerGroupError("x", {0: cause, 1: OSError("its peer is gone")}) for _ in range(5)]
    told = []
    monkeypatch.setattr(ray_job, "_make_trainer", lambda job: Trainer(errors))
    monkeypatch.setattr(ray_job, "_tell", lambda notice, line: told.append(line))
    monkeypatch.setattr(ray_job, "_DISK_PAUSE", 0.0)
    job = Job("j")
    job.workers = WorkersConfig(max_failures=0)
    ray_job.run_trainer(job)
    assert errors == [] and len(told) == 5
    assert all(str(cause) in line and says in line for line in told)


@pytest.mark.fault("bug in what a worker runs")
@pytest.mark.parametrize("bug", [TypeError("no such option"), KeyError("k"), ValueError("k is 0")])
def test_a_bug_is_not_tried_again_and_its_place_is_named(monkeypatch, bug):
    from ray.train.v2.api.exceptions import WorkerGroupError

    text = 'Traceback:\n  File "/a/loop.py", line 3, in run\n  File "/my/model.py", line 12, in f\n'
    # The other rank's failure follows from it.
    failures = {0: RuntimeError("connection closed by peer"), 1: bug}
    errors = [WorkerGroupError(f"{text}{bug!r}", failures) for _ in range(3)]
    monkeypatch.setattr(ray_job, "_make_trainer", lambda job: Trainer(errors))
    job = Job("j")
    job.workers = WorkersConfig(max_failures=3)
    with pytest.raises(RuntimeError) as raised:
        ray_job.run_trainer(job)
    assert len(errors) == 2
    assert short_reason(raised.value) == f"{type(bug).__name__}: {bug} (/my/model.py, line 12)"


@pytest.mark.parametrize(("could_hold", "patience", "left"), [(True, 60.0, 0), (False, 0.0, 4)])
def test_a_job_without_room_waits_and_no_restart_is_counted(
    monkeypatch, could_hold, patience, left
):
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    errors = [ControllerError(WorkerGroupStartupTimeoutError(2)) for _ in range(5)]
    monkeypatch.setattr(ray_job, "_make_trainer", lambda job: Trainer(errors))
    monkeypatch.setattr(ray_job, "_could_hold", lambda job: could_hold)
    monkeypatch.setattr(ray_job, "_PATIENCE_TAKEN", patience)
    monkeypatch.setattr(ray_job, "_PATIENCE_GONE", patience)
    job = Job("j")
    job.workers = WorkersConfig(max_failures=0)
    if left:
        with pytest.raises(ControllerError, match="startup timed out"):
            ray_job.run_trainer(job)
    else:
        ray_job.run_trainer(job)
    assert len(errors) == left


@pytest.mark.parametrize(
    ("address", "printed", "kind"),
    [
        (
            "s3://b/runs/t0",
            "OSError: Testing: AWS Error UNKNOWN (HTTP status 503): x",
            "disk",
        ),
        ("s3://b/runs/t0", "OSError: Bucket 'b' not found", "person"),
        (None, "OSError: [Errno 28] No space left on device: '/x'", "disk"),
        (None, "OSError: [Errno 30] Read-only file system: '/x'", "no disk"),
        (None, "raised in its creation task\nValueError: 'PACKED' is no strategy", "bug"),
        (None, "The actor is dead because its worker process has died.", "machine"),
    ],
)
def test_why_a_controller_died_is_read_off_what_ray_prints(address, printed, kind):
    """It looks into the job's folder before there are any workers."""

    class Died(ActorDiedError):
        def __str__(self):
            return f"The actor died: Traceback\n  File ...\n{printed}"

    found = failure_of(Died(), address)
    assert found.kind == kind and "\n" not in found.text
