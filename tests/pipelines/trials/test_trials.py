import shutil
from types import SimpleNamespace

import pytest
from disks import small_disk
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError
from ray.tune.search import Searcher

from pipelines.config import WorkersConfig
from pipelines.errors import UserError
from pipelines.storage.store import StoreAway
from pipelines.train.draining import NodeDrained
from pipelines.train.reports import NO_ROOM, WAITS
from pipelines.trials import ray_job, waits
from pipelines.trials.job_failures import failure_of
from pipelines.trials.run_trials import _List, _Queue, short_reason


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
    jobs = _List([*map(Job, "abcd")])
    queue = _Queue(jobs, lambda running, waiting: min(room[0], running + waiting), None)
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
    workers = WorkersConfig()

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
    monkeypatch.setattr(ray_job, "_newest_stored", lambda job: None)
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
@pytest.mark.fault("capacity that does not come back")
def test_a_job_without_room_waits_and_no_restart_is_counted(
    monkeypatch, could_hold, patience, left
):
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
    from ray.train.v2.api.exceptions import ControllerError

    errors = [ControllerError(WorkerGroupStartupTimeoutError(2)) for _ in range(5)]
    told = []
    monkeypatch.setattr(ray_job, "_make_trainer", lambda job: Trainer(errors))
    monkeypatch.setattr(ray_job, "_could_hold", lambda job: could_hold)
    monkeypatch.setattr(ray_job, "_tell", lambda notice, line: told.append((notice, line)))
    monkeypatch.setattr("pipelines.trials.waits.TAKEN", patience)
    monkeypatch.setattr("pipelines.trials.waits.GONE", patience)
    job = Job("j")
    job.workers = WorkersConfig(num_workers=2, max_failures=0)
    if left:
        with pytest.raises(RuntimeError, match=r"^j \(2 workers of 1 CPU\): there was no room"):
            ray_job.run_trainer(job)
    else:
        ray_job.run_trainer(job)
        ((notice, line),) = told  # once, however often it looked
        assert notice == WAITS and line.startswith("j (2 workers of 1 CPU): waits for room")
    assert len(errors) == left


def test_the_place_of_a_bug_is_that_of_the_rank_that_has_it():
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import WorkerGroupError

    def wrapped(error, path):
        text = f'Traceback:\n  File "{path}", line 3, in f\n{error!r}'
        return UserExceptionWithTraceback(error, text)

    failures = {
        0: wrapped(ValueError("k is 0"), "/my/model.py"),
        1: wrapped(RuntimeError("connection closed by peer"), "/torch/distributed.py"),
    }
    error = WorkerGroupError("\n".join(map(str, failures.values())), failures)
    assert failure_of(error).text == "ValueError: k is 0 (/my/model.py, line 3)"


def test_a_store_that_goes_away_late_in_a_training_is_waited_for_as_early_on(monkeypatch):
    """What counts is how long it is away, and not for how long the job had trained before."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    now, told, tries = [0.0], [], iter([9000, 30, 9000, 30, 30, 0])

    class Trainings:
        def fit(self):
            seconds = next(tries)
            now[0] += seconds
            if seconds:
                raise WorkerGroupError("x", {0: StoreAway("storage s3://b: nothing answers")})

    monkeypatch.setattr(ray_job, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=str))
    monkeypatch.setattr(waits.StorageWait.__init__, "__defaults__", (lambda: now[0],))
    monkeypatch.setattr(ray_job, "_make_trainer", lambda job: Trainings())
    monkeypatch.setattr(ray_job, "_tell", lambda notice, line: told.append(notice))
    monkeypatch.setattr(ray_job, "_newest_stored", lambda job: None)  # it is away
    job = Job("j")
    job.workers = WorkersConfig(max_failures=0)
    ray_job.run_trainer(job)
    assert told == [WAITS] * 5


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (OSError(28, "No space left on device", "/x/job"), "disk", "No space left on device: /x"),
        (OSError(30, "Read-only file system", "/x/job"), "no disk", "Read-only file system: /x"),
        (PermissionError(13, "Permission denied", "/x"), "person", ""),
    ],
)
def test_what_a_trial_itself_cannot_write(error, kind, says):
    """Before its workers start: it looks into the job's folder, and Ray marks it."""
    found = failure_of(error)
    assert found.kind == kind and says in found.text and "Errno" not in found.text


def test_a_disk_that_takes_no_writes_ends_a_job_in_one_line(monkeypatch):
    from ray.train.v2.api.exceptions import WorkerGroupError

    told, cause = [], OSError(30, "Read-only file system", "/x/epoch-0003")
    errors = [WorkerGroupError(f"Traceback\nOSError: {cause}", {0: cause})]
    monkeypatch.setattr(ray_job, "_make_trainer", lambda job: Trainer(errors))
    monkeypatch.setattr(ray_job, "_tell", lambda notice, line: told.append((notice, line)))
    with pytest.raises(RuntimeError) as raised:
        ray_job.run_trainer(Job("j"))
    assert short_reason(raised.value) == "Read-only file system: /x/epoch-0003"
    assert told == [(NO_ROOM, "j: Read-only file system: /x/epoch-0003")]


def test_a_disk_that_fills_up_amid_a_copy_of_a_folder(tmp_path):
    """Python then raises an error without a number."""
    from ray.train.v2.api.exceptions import WorkerGroupError

    with small_disk("64k") as disk:
        (tmp_path / "part").mkdir()
        (tmp_path / "part" / "weights").write_bytes(bytes(1_000_000))
        with pytest.raises(shutil.Error) as raised:
            shutil.copytree(tmp_path / "part", disk.folder / "job")
        assert raised.value.errno is None
        found = failure_of(WorkerGroupError("x", {0: raised.value}))
        assert found.kind == "disk"
        assert found.text == f"No space left on device: {disk.folder}/job/weights"


MEMORY = (  # as Ray 2.60 words it
    "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "10.0.0.7, ID: 3f) was 30.43GB used / 32.00GB limit (0.951)\nTop 10 memory users: ..."
)


@pytest.mark.parametrize("who", ["worker", "controller"])
@pytest.mark.fault("out of memory on the host")
def test_a_host_without_memory_is_named_and_the_job_goes_on(monkeypatch, who):
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
    from ray.train.v2.api.exceptions import WorkerGroupError

    def error():
        if who == "controller":
            return OutOfMemoryError(MEMORY)
        lost = WorkerHealthCheckFailedError("a check failed", OutOfMemoryError(MEMORY))
        return WorkerGroupError("x", {0: RuntimeError("connection closed by peer"), 1: lost})

    errors, told = [error(), error()], []
    monkeypatch.setattr(ray_job, "_make_trainer", lambda job: Trainer(errors))
    monkeypatch.setattr(ray_job, "_tell", lambda notice, line: told.append(line))
    job = Job("j")
    job.workers = WorkersConfig(max_failures=1)
    with pytest.raises(RuntimeError, match=r"^out of memory on the host.*, after 1 restarts$"):
        ray_job.run_trainer(job)
    assert told == [
        "j: out of memory on the host, so that Ray ended one of its processes on 10.0.0.7: 30.43GB "
        "of 32.00GB in use: goes on from its last checkpoint (restart 1 of 1)"
    ]


def test_a_machine_that_is_taken_away_before_the_job_could_leave_is_no_failure(monkeypatch):
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
    from ray.train.v2.api.exceptions import WorkerGroupError

    gone = RayActorError(error_msg="its node died", preempted=True)
    lost = WorkerHealthCheckFailedError("a check failed", gone)
    errors, told = [WorkerGroupError("x", {0: RuntimeError("closed"), 1: lost})] * 5, []
    monkeypatch.setattr(ray_job, "_make_trainer", lambda job: Trainer(errors))
    monkeypatch.setattr(ray_job, "_tell", lambda notice, line: told.append(line))
    job = Job("j")
    job.workers = WorkersConfig(max_failures=0)
    ray_job.run_trainer(job)
    assert told == ["j: a machine of it was taken away: goes on from its last checkpoint"] * 5


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
