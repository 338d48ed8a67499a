"""Faults inside Ray's worker processes, where no test can reach: `sitecustomize` of each Python.

A folder with this file under that name goes before everything else on PYTHONPATH, and the fault
waits for a file to appear: TOKENPOOL_STICK names it. Whoever takes it away gets stuck for ever, or
does what TOKENPOOL_STICK_AT says.
"""

import importlib.abc
import importlib.util
import os
import sys
import time


def stuck(rank: str, where: str) -> bool:
    """Whether this process has taken the file, and with it the fault."""
    place = os.environ.get("TOKENPOOL_STICK", "")
    if where not in os.environ.get("TOKENPOOL_STICK_AT", "loader, scorer"):
        return False
    if not place or os.environ.get("RANK", "0") != rank:
        return False
    try:
        os.unlink(place)
    except FileNotFoundError:
        return False
    return True


def stick_loader(module):
    """The loader of rank 1 never gives its next batch; all else of that process lives."""
    make = module.make_loader

    class Sticking:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __len__(self):
            return len(self.inner)

        def __iter__(self):
            for batch in self.inner:
                if stuck("1", "loader"):
                    time.sleep(1e6)
                yield batch

    module.make_loader = lambda *args, **kwargs: Sticking(make(*args, **kwargs))


def stick_scorer(module):
    """A scorer never comes to the end of a schedule, and answers all the same.

    Each takes TOKENPOOL_SECONDS more, so that there is time to do something to one.
    """
    run = module.run_schedules

    def run_schedules(*args, **kwargs):
        for found in run(*args, **kwargs):
            time.sleep(float(os.environ.get("TOKENPOOL_SECONDS", "0")))
            if stuck("0", "scorer"):
                time.sleep(1e6)
            yield found

    module.run_schedules = run_schedules


def harm_step(module):
    """Amid a step rank 1 hangs in a collective, has a bug, or takes all the memory of its host."""
    reduce = module.Update._reduce

    def _reduce(self):
        if stuck("1", "collective"):
            import torch

            torch.distributed.recv(torch.zeros(1), src=0)  # which nobody sends
        if stuck("1", "bug"):
            raise ValueError("k is 0")
        if stuck("1", "memory"):
            self.hoard = []
            while True:  # until somebody ends it
                self.hoard.append(b"x" * 50_000_000)
                time.sleep(0.02)
        reduce(self)

    module.Update._reduce = _reduce


def hurry(module):
    """A job waits for room on its cluster for seconds only."""
    module.GONE = float(os.environ.get("TOKENPOOL_PATIENCE", module.GONE))


HARM = {
    "pipelines.data.loader": stick_loader,
    "pipelines.search.shared_prefixes": stick_scorer,
    "pipelines.train.update": harm_step,
    "pipelines.trials.waits": hurry,
}


class Hook(importlib.abc.MetaPathFinder):
    """Does harm to modules once they are imported."""

    busy = False

    def find_spec(self, name, path, target=None):
        if name not in HARM or self.busy:
            return None
        self.busy = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.busy = False
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            HARM[name](module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Hook())
