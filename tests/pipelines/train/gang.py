"""Workers of a job as plain processes on this machine.

They are forked from a server that has imported torch, DeepSpeed and the loop already: to start
Python and import them anew takes longer than most of these tests compute.
"""

import contextlib
import multiprocessing
import os
import socket
import sys
import traceback
from queue import Empty

PRELOADED = ["torch", "timm", "pipelines.train.loop", "pipelines.train.imports"]


def run_gang(world_size, function, *args, accelerator="cpu", timeout=240):
    """What `function(*args)` returns in each of so many processes, by rank.

    They find the variables that torchrun would set. If one raises, all end and this raises.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = context.Queue()
    processes = [
        context.Process(
            target=_member, args=(rank, world_size, port, accelerator, function, args, results)
        )
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    found = {}
    try:
        while len(found) < world_size:
            rank, value, problem = results.get(timeout=timeout)
            if problem is not None:
                raise AssertionError(f"rank {rank}:\n{problem}")
            found[rank] = value
    except Empty:
        raise AssertionError(
            f"no answer from {world_size - len(found)} within {timeout} s"
        ) from None
    finally:
        for process in processes:
            if len(found) == world_size:
                process.join(10)
            process.kill()
            process.join()
    return [found[rank] for rank in range(world_size)]


def train_as_torchrun_does(config):
    """`pipelines.train` with a file of `tokenpool train`, for `run_gang`; its exit code."""
    from pipelines.train.__main__ import main

    sys.argv = ["pipelines.train", str(config)]
    return main()


def _member(rank, world_size, port, accelerator, function, args, results):
    import torch
    import torch.distributed as dist

    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "DS_ACCELERATOR": accelerator,
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torch.set_num_threads(1)
    try:
        results.put((rank, function(*args), None))
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        with contextlib.suppress(Exception):
            if dist.is_initialized():
                dist.destroy_process_group()
