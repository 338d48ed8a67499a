"""What an epoch's report may hold beside the keys that each has (`trials.REPORT_KEYS`)."""

from __future__ import annotations

# Of a step, in its order. `data`: waiting for a batch, its copy and augmentation; `forward`: with
# the loss and the teacher; `communication`: the all-reduce of the gradients, which includes waiting
# for a slower rank; `step`: clipping, the optimizer (with ZeRO also the all-gather) and the EMA.
PHASES = ("data", "forward", "backward", "communication", "step")
# In place of a report: a line for the user, and what it is about. `RESTARTED`: the job goes on from
# its last checkpoint; `WAITS`: it waits for room on a disk, or waits no more; `NO_ROOM`: it has
# waited in vain, as all others will.
NOTICE, NOTICE_LINE = "notice", "notice_line"
RESTARTED, WAITS, NO_ROOM = "restarted", "waits", "no room"
OPTIONAL_KEYS = (
    "top5_minival",
    "top1_minival_raw",
    "top5_minival_raw",
    "loss_minival_raw",
    "top1_minival_pooled",  # of a supernet: the mean over a few schedules near the front
    "loss_minival_pooled",
    *(f"share_{phase}" for phase in PHASES),
    "skipped_steps",
    "rollbacks",
    "micro_batch",
    "gpu_memory_peak_gib",
    "gpu_utilisation",
)
