"""Before the first stage: what bounds need to know, so that what nothing meets is said at once."""

from __future__ import annotations

import ray

from pipelines.errors import UserError
from pipelines.search.calibration import probe_counts
from pipelines.search.latency import measure_table
from pipelines.search.search_space import is_plain, make_space, vit_spec
from pipelines.search.stages.context import StageContext
from pipelines.search.stages.timed import timed_task

_COUNTS = 6


def prepare_bounds(context: StageContext) -> None:
    """Times blocks where latency is bounded; once a search.

    Raises:
        UserError: no schedule is within the bounds, or latency is bounded of blocks of other kinds.
    """
    config, state = context.config, context.state
    if config.space.max_latency_ms is None:
        return
    for given in config.space.widths:
        if given.checkpoint is not None and not is_plain(config, given, state.num_classes):
            raise UserError(
                f"space.max_latency_ms is foretold from plain blocks, which {given.checkpoint} is "
                "not made of: bound its cost by space.max_gmacs"
            )
    unbounded = make_space(config, state.num_classes)
    missing = [arm for arm in unbounded.cost_ranges if arm not in state.latency_tables]
    if missing:
        remote, device, threads = timed_task(context, measure_table)
        widths = {width.width: width for width in config.space.widths}
        counts = probe_counts(unbounded, _COUNTS)
        with (
            context.screen.progress("blocks timed", len(missing)) as bar,
            context.metered("calibrate", config.screen.gpus_per_actor or 1.0),
        ):
            for width, method in missing:
                table = ray.get(
                    remote.remote(
                        vit_spec(config, widths[width], state.num_classes),
                        config.model.patch_size,
                        method,
                        counts,
                        batch=config.space.latency_batch,
                        device=device,
                        num_threads=threads,
                    )
                )
                context.recorder.add(
                    "latency_table",
                    width=width,
                    method=method,
                    counts=table.counts,
                    blocks=table.blocks,
                    rest=table.rest,
                )
                bar.advance(note=f"width {width} {method}")
    context.screen.say(f"within the bounds: {context.space.describe()}")
