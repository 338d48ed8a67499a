"""Actors that score, watched: one that hangs or dies is replaced, and its work is done again."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from pipelines.errors import UserError
from pipelines.search.scorer import Scorer
from pipelines.search.stages.context import StageContext
from pipelines.search.state import Weights
from pipelines.train.life_signs import Sign, read_sign
from pipelines.trials.job_failures import out_of_memory
from pipelines.trials.run_trials import short_reason
from pipelines.trials.stall_watch import StallWatch

Submit = Callable[[Any, Any], Any]
# Times that the same piece of work may cost an actor its life.
_MOST_FAILURES = 3
_LIFE = "life"  # the group of threads that answers while another scores


class WatchedScorer(Scorer):
    """A scorer that tells how far it is while it scores."""

    @ray.method(concurrency_group=_LIFE)
    def sign(self) -> tuple[str, Sign]:
        """Where it runs, and its last sign of life."""
        return f"on {socket.gethostname()} (pid {os.getpid()})", read_sign()


class ScorerPool:
    """Hands out work to actors, and watches those that have some.

    Args:
        make: starts an actor.
        count: of actors; none is a pool that is asked nothing.
        stage: whose, for what is said.
        minutes: see `StallWatch`.
        tell: given the line about an actor that is replaced.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        count: int,
        stage: str,
        minutes: float | None,
        tell: Callable[[str, str], None],
    ) -> None:
        self._make, self._stage, self._tell = make, stage, tell
        self._actors = [make() for _ in range(count)]
        self._where = [""] * count
        self._watch = StallWatch(range(count), minutes, in_step=False)
        self._asked: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._actors)

    def ask(self, submit: Callable[[Any], Any]) -> Any:
        """What one of the actors answers."""
        (found,) = self.map(lambda actor, _: submit(actor), [None])
        return found

    def map(self, submit: Submit, tasks: Iterable[Any]) -> Iterator[Any]:
        """What becomes of tasks, in their order.

        Args:
            submit: given an actor and a task, calls the actor.
            tasks: all of them; an actor has one at a time.

        Raises:
            UserError: the same task has cost several actors their lives.
        """
        todo = deque(enumerate(tasks))
        count, told = len(todo), 0
        failures: dict[int, int] = {}
        done: dict[int, Any] = {}
        running: dict[int, tuple[Any, int, Any]] = {}  # slot → reference, number, task
        while told < count:
            for slot in [s for s in range(len(self._actors)) if s not in running][: len(todo)]:
                number, task = todo.popleft()
                self._watch.rest(slot)
                running[slot] = (submit(self._actors[slot], task), number, task)
            refs = {ref: slot for slot, (ref, _, _) in running.items()}
            ready, _ = ray.wait(list(refs), num_returns=1, timeout=self._watch.every)
            there = [refs[ref] for ref in ready]
            lost = {s: why for s, why in self._stalled(running).items() if s not in there}
            for slot in there:
                ref, number, _ = running[slot]
                try:
                    done[number] = ray.get(ref)
                    del running[slot]
                except RayActorError as error:
                    if error.actor_init_failed:
                        raise
                    lost[slot] = f"it died: {short_reason(error)}"
                    # Of a machine that is taken away, its work is innocent.
                    failures[number] = failures.get(number, 0) - error.preempted
                except OutOfMemoryError as error:  # Ray has ended it to save its machine
                    lost[slot] = out_of_memory(error)
            for slot, why in lost.items():
                _, number, task = running.pop(slot)
                failures[number] = failures.get(number, 0) + 1
                if failures[number] == _MOST_FAILURES:
                    raise UserError(
                        f"{self._stage}: the same work failed {_MOST_FAILURES} times, the last "
                        f"time on {self._name(slot)}: {why}; type the same command to go on",
                        exit_code=1,
                    )
                todo.appendleft((number, task))
                self._replace(slot, why)
            while told in done:
                yield done.pop(told)
                told += 1

    def close(self) -> None:
        """Ends the actors."""
        for actor in self._actors:
            ray.kill(actor)

    def _stalled(self, running: dict[int, Any]) -> dict[int, str]:
        """Of the slots that have work, those that stalled, and what is to be said of each."""
        if not self._watch.is_due:
            return {}
        answers = {}
        for slot in list(self._asked):
            if ray.wait([self._asked[slot]], timeout=0)[0]:
                try:
                    self._where[slot], answers[slot] = ray.get(self._asked.pop(slot))
                except RayError:
                    continue  # it is gone, which its work tells as well
        found = {stall.rank: stall.text for stall in self._watch.look(answers)}
        for slot, actor in enumerate(self._actors):
            if slot not in running:
                self._watch.rest(slot)
            elif slot not in self._asked:
                self._asked[slot] = actor.sign.remote()
        return {slot: text for slot, text in found.items() if slot in running}

    def _replace(self, slot: int, why: str) -> None:
        self._tell(
            f"scorer-{slot + 1}",
            f"{self._name(slot)}: {why}: it is replaced, and its work done again",
        )
        ray.kill(self._actors[slot])
        self._asked.pop(slot, None)
        self._watch.forget(slot)
        self._actors[slot], self._where[slot] = self._make(), ""

    def _name(self, slot: int) -> str:
        return f"{self._stage} scorer {slot + 1} {self._where[slot]}".rstrip()


@contextmanager
def scorers(
    context: StageContext, stage: str, count: int, weights: Weights = "base"
) -> Iterator[ScorerPool]:
    """Actors that hold every model there is and the images; their time is a stage's cost.

    Args:
        context: of the search.
        stage: whose.
        count: how many, at most: as many as fit the cluster.
        weights: of the bases, or of the supernets where there are any.

    Raises:
        UserError: not even one fits.
    """
    settings, state = context.config.screen, context.state
    data = context.config.data.model_copy(update={"path": context.config.data.path.resolve()})
    models = {
        base.width: state.weights(base.width, weights) for base in state.bases if base.checkpoint
    }
    options: dict[str, Any] = {"concurrency_groups": {_LIFE: 1}}
    remote: Any = ray.remote(
        num_cpus=settings.cpus_per_actor, num_gpus=settings.gpus_per_actor, **options
    )(WatchedScorer)
    device = "cuda" if settings.gpus_per_actor else "cpu"
    fits = context.fits(1, settings.cpus_per_actor, settings.gpus_per_actor) if count else 0
    pool = ScorerPool(
        lambda: remote.remote(models, data, batch_size=settings.batch_size, device=device),
        min(count, fits),
        stage,
        context.config.stall_minutes,
        context.restarted,
    )
    try:
        with context.metered(stage, (settings.gpus_per_actor or 1.0) * len(pool)):
            yield pool
    finally:
        pool.close()
