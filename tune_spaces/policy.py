"""What a search does next: the policy of `tokenpool search`, over Ray, and of `bench search`.

It is asked, and told what came of it; it knows neither Ray nor torch, and nothing in it is random
but what follows from its seed. Told the same in the same order it decides the same: so a search
that was killed goes on as if nothing had been once its ledger is told to a new policy.

The search goes in rounds. Each scores more schedules without training, bred from what is known,
and then takes steps of training: a candidate to its rung, or one that waits at its rung to its
end. Next is the step that should add most hypervolume for its price. So everything that promises
something is seen at the rung early, and what the front is made of is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from tune_spaces.actions import Action, PolicySettings, Score, Train, Wait
from tune_spaces.candidate import Key, Untrained
from tune_spaces.evolution import first_generation, next_generation
from tune_spaces.halving import Entry, HalvingRule, Verdict
from tune_spaces.outlook import DenseModel, Outlook, Trained
from tune_spaces.scores import Scores
from tune_spaces.space import Candidate, ScheduleSpace

__all__ = ["Action", "FrontPolicy", "PolicySettings", "Score", "Train", "Wait"]

# Children bred for each one that is scored.
_OVERSAMPLE = 6

Status = Literal["running", "paused", "interrupted", "stopped", "done", "failed"]


@dataclass
class _Trial(Trained):
    status: Status = "running"


@dataclass
class FrontPolicy:
    """Finds the front of cost against quality.

    Args:
        space: the space that is searched.
        settings: how much is scored and trained.
        dense: the dense models, one of each width.
        planned: the candidates that the first generation begins with.
    """

    space: ScheduleSpace
    settings: PolicySettings
    dense: Sequence[DenseModel]
    planned: Sequence[Candidate] = ()
    _outlook: Outlook = field(init=False)
    _rule: HalvingRule = field(init=False)
    _scores: Scores = field(init=False)
    _due: dict[Key, Candidate] = field(default_factory=dict, init=False)
    _generations: int = field(default=0, init=False)
    _bred_out: bool = field(default=False, init=False)
    _trials: dict[str, _Trial] = field(default_factory=dict, init=False)
    _trained: list[_Trial] = field(default_factory=list, init=False)  # to the rung, in that order
    _front: list[tuple[float, float]] = field(default_factory=list, init=False)
    _rung: dict[str, Entry] = field(default_factory=dict, init=False)
    _answer: Action | None = field(default=None, init=False)
    _is_answered: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._outlook = Outlook(self.space, self.dense, self.settings.prices)
        self._scores = Scores(self._outlook, self.dense)
        self._rule = HalvingRule(keep=self.settings.keep, noise=self.settings.noise)
        for model in self.dense:
            self._reached(model.gmacs, model.top1)

    # ---------------------------------------------------------------- what is told

    def asked(self, generation: Sequence[Candidate]) -> None:
        """A generation is being scored; an empty one says that the space has no more."""
        self._forget()
        self._generations += 1
        self._due = {candidate.key: candidate for candidate in generation}
        self._bred_out = not self._due

    def scored(self, rows: Sequence[Untrained]) -> None:
        """Candidates were scored, of the generation that was asked for or from before."""
        self._forget()
        self._scores.rows += rows
        for row in rows:
            self._due.pop(row.candidate.key, None)
        while self._generations < self._num_generations and self._wanted(
            self._generations + 1
        ) <= len(self._scores.rows):
            self._generations += 1  # of a search begun before generations were recorded

    def began(self, trial_id: str, candidate: Candidate) -> None:
        """A new trial runs from now on."""
        self._forget()
        self._trials[trial_id] = _Trial(candidate, self._scores.guess(candidate))

    def resumed(self, trial_id: str) -> None:
        """A trial that was paused or interrupted runs again."""
        self._now(trial_id, "running")

    def reported(self, trial_id: str, epoch: int, top1: float) -> Verdict | None:
        """A trial has come to a top-1.

        Args:
            trial_id: the name of the trial.
            epoch: the epoch it has ended.
            top1: its top-1 on minival, a fraction.

        Returns:
            At the rung, whether it may ever go on. None anywhere else.
        """
        trial, prices = self._trials[trial_id], self.settings.prices
        if trial.status == "stopped" and epoch > prices.first:
            trial.status = "running"  # an older program judged it otherwise
        if epoch >= prices.last:
            self._forget()
            trial.last = top1
            if trial.first is None:
                self._came_to_rung(trial, top1)
            self._reached(trial.candidate.gmacs, top1)
        elif epoch == prices.first and trial.first is None:
            self._forget()
            self._came_to_rung(trial, top1)
            entry = Entry(trial.candidate.gmacs, top1)
            self._rung[trial_id] = entry
            verdict = self._rule.judge(trial_id, self._rung)
            self._rung[trial_id] = replace(entry, kept=verdict.kept)
            trial.status = trial.status if verdict.kept else "stopped"
            return verdict
        return None

    def _came_to_rung(self, trial: _Trial, top1: float) -> None:
        trial.first = top1
        self._trained.append(trial)
        self._reached(trial.candidate.gmacs, top1)

    def _reached(self, gmacs: float, top1: float) -> None:
        """Keeps the front of all there is."""
        if not any(cost <= gmacs and quality >= top1 for cost, quality in self._front):
            ahead = [row for row in self._front if row[0] < gmacs or row[1] > top1]
            self._front = [*ahead, (gmacs, top1)]

    def paused(self, trial_id: str) -> None:
        """A trial waits at its rung: its processes are gone, its checkpoint is there."""
        self._now(trial_id, "paused")

    def stopped(self, trial_id: str) -> None:
        """A trial never goes on."""
        self._now(trial_id, "stopped")

    def done(self, trial_id: str) -> None:
        """A trial is over, and its model there."""
        self._now(trial_id, "done")

    def failed(self, trial_id: str) -> None:
        """A trial failed for good, as far as this driver is concerned."""
        self._now(trial_id, "failed")

    def restarted(self) -> None:
        """The driver is a new one: what ran or failed under the last one is to run again."""
        for trial_id, trial in self._trials.items():
            if trial.status in ("running", "failed"):
                self._now(trial_id, "interrupted")

    def _now(self, trial_id: str, status: Status) -> None:
        self._forget()
        self._trials[trial_id].status = status

    # ---------------------------------------------------------------- what is asked

    def ask(self) -> Action | None:
        """What to do next; None at the end. It stays the same until something is told."""
        if not self._is_answered:
            self._answer, self._is_answered = self._decide(), True
        return self._answer

    def goes_on(self, trial_id: str) -> bool:
        """Whether a trial that has just come to its rung goes on at once; otherwise it is paused.

        It goes on where its end is the next step of all, its processes being there already.
        """
        self.paused(trial_id)
        # Where scores are due or trials were interrupted, it comes after them.
        others = any(trial.status == "interrupted" for trial in self._trials.values())
        may = self._is_round_over and not self._due and not others
        step = self._step(warm=trial_id) if may else None
        if step is None or step.trial_id != trial_id:
            return False
        self.resumed(trial_id)
        return True

    @property
    def paused_trials(self) -> list[str]:
        """Trials that wait at their rungs, in the order they began."""
        return [name for name, trial in self._trials.items() if trial.status == "paused"]

    @property
    def num_left(self) -> int:
        """Trials that could run now, at most, beside those that do."""
        idle = sum(trial.status in ("paused", "interrupted") for trial in self._trials.values())
        return idle + max(0, self._allowed - len(self._trials))

    @property
    def num_unscored(self) -> int:
        """Schedules that are to be scored before anything is trained again, about."""
        total, rounds = self._num_generations, self.settings.rounds
        ends = [g for g in range(1, total + 1) if g * rounds // total > (g - 1) * rounds // total]
        end = next((g for g in ends if g >= self._generations + (not self._due)), total)
        return max(0, self._wanted(end) - len(self._scores.rows))

    # ---------------------------------------------------------------- decisions

    def _decide(self) -> Action | None:
        for trial_id, trial in self._trials.items():
            if trial.status == "interrupted":
                return self._train(trial_id, trial)
        running = any(trial.status == "running" for trial in self._trials.values())
        if self._due:
            return Wait() if running else Score(tuple(self._due.values()), False)
        if self._is_round_over:
            step = self._step()
            if step is not None:
                return step
        if running:
            return Wait()
        if self._generations < self._num_generations and not self._bred_out:
            return Score(tuple(self._bred()), True)
        return None

    @property
    def _num_generations(self) -> int:
        return max(self.settings.generations, self.settings.rounds)

    def _wanted(self, generations: int) -> int:
        """Schedules scored by the end of so many generations."""
        return round(self.settings.schedules * generations / self._num_generations)

    @property
    def _is_last_round(self) -> bool:
        return self._generations >= self._num_generations or self._bred_out

    @property
    def _allowed(self) -> int:
        """Trials begun by the end of this round, at most."""
        trials = self.settings.trials
        share = -(-self._generations * trials // self._num_generations)
        return trials if self._is_last_round else share

    @property
    def _is_round_over(self) -> bool:
        """Whether the generation just scored is the last of its round."""
        done, rounds = self._generations, self.settings.rounds
        here, after = (g * rounds // self._num_generations for g in (done, done - 1))
        return bool(done) and (here > after or self._is_last_round)

    def _bred(self) -> list[Candidate]:
        rng = np.random.default_rng([self.settings.seed, len(self._scores.rows)])
        count = max(1, self._wanted(self._generations + 1) - len(self._scores.rows))
        targets, log_cost = self.settings.targets, self.settings.prices.log_cost
        if not self._scores.rows:
            return first_generation(self.space, rng, count, self.planned, targets, log_cost)
        known = self._scores.expected(self._trained)
        progress = min(1.0, len(known) / self.settings.schedules)

        def bred(oversample: int) -> list[Candidate]:
            return next_generation(
                self.space,
                rng,
                known,
                count,
                targets=targets,
                log_cost=log_cost,
                progress=progress,
                oversample=oversample,
            )

        return bred(_OVERSAMPLE) or bred(1)

    def _step(self, warm: str | None = None) -> Train | None:
        """The step of training that should add most for its price."""
        margins = [self.settings.noise, 0.0] if self._is_last_round else [self.settings.noise]
        for margin in dict.fromkeys(margins):
            found = self._best_step(margin, warm)
            if found is not None:
                return found
        return self._least() if self._is_last_round else None

    def _least(self) -> Train | None:
        """One trial to its end where nothing promises anything: whoever searches wants a model."""
        if any(trial.status in ("done", "running") for trial in self._trials.values()):
            return None
        waiting = {name: self._trials[name] for name in self.paused_trials}
        if waiting:
            lacks = {name: self._lack(t.candidate, t.first or 0.0) for name, t in waiting.items()}
            trial_id = min(lacks, key=lambda name: lacks[name])
            return self._train(trial_id, waiting[trial_id])
        new, hopes = self._untried()
        if self._trials or not new:
            return None
        best = min(range(len(new)), key=lambda i: self._lack(new[i], hopes[i]))
        return Train("t000", new[best], self.settings.prices.first, True)

    def _lack(self, candidate: Candidate, top1: float) -> float:
        """What a candidate lacks against the front at its own cost, or against nothing."""
        heights = [known for gmacs, known in self._front if gmacs <= candidate.gmacs]
        return max(heights, default=self.settings.prices.floor) - top1

    def _best_step(self, margin: float, warm: str | None) -> Train | None:
        prices = self.settings.prices
        waiting = {name: self._trials[name] for name in self.paused_trials}
        known = self._known()
        paused = [trial.candidate for trial in waiting.values()]
        firsts = [trial.first for trial in waiting.values() if trial.first is not None]
        ends = self._outlook.worth(
            paused,
            self._outlook.at_end(paused, firsts, self._trials.values()),
            known,
            prices.last - prices.first,
            0.0,
            None if warm is None else self._trials[warm].candidate,
        )
        new, hopes = self._untried()
        # What a candidate may come to at the rung, for the price of that, or at its end.
        starts = np.maximum(
            self._outlook.worth(new, hopes, known, prices.first, margin),
            self._outlook.worth(
                new,
                self._outlook.at_end(new, hopes, self._trials.values()),
                known,
                prices.last,
                margin,
            ),
        )
        best_end, best_start = ends.max(initial=0.0), starts.max(initial=0.0)
        if max(best_end, best_start) <= 0:
            return None
        if best_end >= best_start:
            trial_id = list(waiting)[int(np.argmax(ends))]
            return self._train(trial_id, waiting[trial_id])
        name = f"t{len(self._trials):03d}"
        return Train(name, new[int(np.argmax(starts))], prices.first, True)

    def _train(self, trial_id: str, trial: _Trial) -> Train:
        prices = self.settings.prices
        until = prices.first if trial.first is None else prices.last
        return Train(trial_id, trial.candidate, until, False)

    # ---------------------------------------------------------------- knowledge

    def _known(self) -> list[tuple[float, float]]:
        """GMACs and top-1 of the front there is, and of what is expected of what runs."""
        running = [t for t in self._trials.values() if t.status == "running" and t.last is None]
        begun = [t for t in running if t.first is None]
        ending = [t for t in running if t.first is not None]
        firsts = self._outlook.expected(
            [trial.candidate for trial in begun],
            [self._scores.guess(trial.candidate, trial.guess) for trial in begun],
            self._trained,
        )
        firsts += [trial.first for trial in ending if trial.first is not None]
        candidates = [trial.candidate for trial in begun + ending]
        expected = self._outlook.at_end(candidates, firsts, self._trials.values())
        costs = [candidate.gmacs for candidate in candidates]
        return [*self._front, *zip(costs, expected, strict=True)]

    def _untried(self) -> tuple[list[Candidate], list[float]]:
        if len(self._trials) >= self._allowed:
            return [], []
        begun = {t.candidate.key for t in self._trials.values() if t.first is None}
        return self._scores.untried(self._trained, begun)

    def _forget(self) -> None:
        self._is_answered = False
