import threading

import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from pipelines.train.draining import Departure


@given(st.lists(st.one_of(st.none(), st.integers(0, 12)), min_size=1, max_size=4))
def test_all_ranks_leave_after_the_same_step(heard):
    """Each hears of it after another step, or never; none waits for more than one step."""
    store, left = dist.HashStore(), {}
    steps = threading.Barrier(len(heard))  # the gradients' all-reduce

    def rank(number):
        now = 0
        departure = Departure(
            lambda: "host-1" if heard[number] is not None and now >= heard[number] else "", store
        )
        for now in range(16):
            steps.wait()
            if why := departure.after(now):
                left[number] = (now, why)
                return

    ranks = [threading.Thread(target=rank, args=(number,)) for number in range(len(heard))]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join(10)
    first = min((step for step in heard if step is not None), default=None)
    if first is None:
        assert left == {}
    else:
        assert len(left) == len(heard)
        ((step, why),) = set(left.values())
        assert why == "host-1" and first < step <= first + 2
