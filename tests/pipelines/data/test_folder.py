"""How the files of a folder are dealt out to the workers."""

import pytest

from pipelines.data.sources.folder import unit_bounds


@pytest.mark.parametrize("count", [0, 1, 31, 33, 300, 10_000, 1_281_167])
def test_units_cover_all_files_in_order(count):
    bounds = unit_bounds(count)
    covered = [number for bound in bounds for number in range(*bound)]
    assert covered == list(range(count))
    assert all(0 < end - start <= 256 for start, end in bounds)


@pytest.mark.parametrize("count", [5_000, 10_000, 100_000])
@pytest.mark.parametrize("workers", [2, 5, 8])
def test_workers_of_one_speed_end_together(count, workers):
    """The last one is late by less than 2 % of the whole, or one smallest unit."""
    busy = [0] * workers
    for start, end in unit_bounds(count):
        busy[busy.index(min(busy))] += end - start
    assert max(busy) - count / workers <= max(32, 0.02 * count / workers)
