"""What a job failed of, by Ray Train's error: a machine, a disk, a bug, a fault of the user's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError

from cluster import ray_private
from pipelines.errors import UserError
from pipelines.storage.room import DiskFull, cannot_be_written, in_words, lacks_room
from pipelines.storage.store import ObjectStore, StoreAway, StoreError

# What code raises that is wrong, or that is given what it cannot take: never a machine's failure.
_BUGS: tuple[type[Exception], ...] = (
    *(TypeError, ValueError, LookupError, AttributeError, NameError, ImportError, SyntaxError),
    *(AssertionError, NotImplementedError, ArithmeticError),
)


@dataclass(frozen=True)
class Failure:
    """Why a job's workers, or its controller, have ended.

    Attributes:
        kind: `room`: the cluster had none for its workers. `disk`: one was full, or an object store
            did not answer; `no disk`: one is full and was waited for, or takes no writes. `bug` and
            `person`: it would come again. `drained`: a machine is to be taken away, and the job has
            left it; `taken`: it was, before the job could. `stall` and `machine`: what a restart is
            for.
        text: in one line; empty where Ray's own error says it.
    """

    kind: Literal[
        "room", "drained", "taken", "disk", "no disk", "bug", "person", "stall", "machine"
    ]
    text: str = ""


def failure_of(error: Exception, address: str | None = None) -> Failure:
    """What a `TrainingFailedError` comes from, or the death of Ray Train's controller.

    Args:
        error: as `fit` raised it, or what it had to write before.
        address: of the job's folder in an object store, if it is in one.
    """
    from pipelines.train.draining import NodeDrained
    from pipelines.trials.stall_callback import WorkerStalled

    controller = getattr(error, "controller_failure", None)
    if isinstance(error, ActorDiedError):
        controller = _died_of(error, address)
        if controller is None and "creation task" in str(error):
            return Failure("bug", str(error).strip().splitlines()[-1])
    if isinstance(error, OutOfMemoryError | OSError):
        controller = error
    if isinstance(controller, ray_private.WorkerGroupStartupTimeoutError):
        return Failure("room")
    found = [*getattr(error, "worker_failures", {}).values(), controller]
    wrapped = [each for each in found if each is not None]
    causes = [_root(each) for each in wrapped]
    for cause in causes:
        if isinstance(cause, NodeDrained):
            return Failure("drained", str(cause))
        if isinstance(cause, StoreAway):
            return Failure("disk", str(cause))
        if isinstance(cause, DiskFull) or cannot_be_written(cause):
            return Failure("no disk", in_words(cause))
        if lacks_room(cause):
            return Failure("disk", in_words(cause))
    if isinstance(error, OSError) or any(isinstance(cause, UserError) for cause in causes):
        return Failure("person")
    # What Ray says of a process that is gone; the other ranks' errors follow from it.
    deaths = [getattr(cause, "health_check_failure", cause) for cause in causes]
    if any(isinstance(death, RayActorError) and death.preempted for death in deaths):
        return Failure("taken", "a machine of it was taken away")
    for death in deaths:
        if isinstance(death, OutOfMemoryError):
            return Failure("machine", out_of_memory(death))
    stalled = [str(cause) for cause in causes if isinstance(cause, WorkerStalled)]
    if stalled:
        return Failure("stall", "; ".join(stalled))
    bugs = [n for n, cause in enumerate(causes) if isinstance(cause, _BUGS)]
    # What a rank raises because another's process died is none.
    if bugs and not any(isinstance(cause, ray_private.RayTrainError) for cause in causes):
        bug = causes[bugs[0]]
        # Its own traceback: another rank's is in Ray's text as well.
        place = _place(wrapped[bugs[0]]) or _place(error)
        return Failure("bug", f"{type(bug).__name__}: {bug}{place}")
    return Failure("machine")


def _died_of(error: ActorDiedError, address: str | None) -> Exception | None:
    """Why a controller died as it was made; None where it was killed.

    It looks into the job's folder before it starts anything. Ray hands on only what was printed.
    """
    found = re.findall(r"^OSError: (?:\[Errno (\d+)\] )?(.*)$", str(error), re.MULTILINE)
    if not found:
        return None
    number, text = found[-1]
    cause = OSError(int(number), text) if number else OSError(text)
    if address is None:
        return cause
    try:
        with ObjectStore(address).named():
            raise cause
    except StoreError as named:
        return named


def out_of_memory(error: OutOfMemoryError) -> str:
    """What Ray's monitor says of a machine whose memory ran out, in one line."""
    found = re.search(r"IP: ([^,)\s]+).*?([\d.]+GB) used / ([\d.]+GB)", str(error), re.DOTALL)
    where = f" on {found[1]}: {found[2]} of {found[3]} in use" if found else ""
    return f"out of memory on the host, so that Ray ended one of its processes{where}"


def _root(error: BaseException) -> BaseException:
    """What Ray wrapped: the exception that the worker's own code raised."""
    for name in ("_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return _root(inner)
    return error


def _place(error: BaseException) -> str:
    """The file and line that a worker's error was raised in, by the traceback that Ray kept."""
    found = re.findall(r'File "(.+)", line (\d+)', str(error))
    return f" ({found[-1][0]}, line {found[-1][1]})" if found else ""
