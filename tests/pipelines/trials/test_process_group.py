import json
import subprocess
import sys

import pytest

WORKER = """
import json, sys, time
from pathlib import Path
from types import SimpleNamespace
import psutil
from pipelines.trials import process_group
rank, node, local, folder = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
process_group.get_context = lambda: SimpleNamespace(
    get_world_rank=lambda: rank, get_world_size=lambda: 2, get_local_rank=lambda: rank,
    get_local_world_size=lambda: local, get_node_rank=lambda: 0,
)
process_group.ray = SimpleNamespace(util=SimpleNamespace(get_node_ip_address=lambda: node))
where = folder / "where.json"
if rank == 0:
    text = json.dumps(process_group._meeting_point())
    where.with_suffix(".new").write_text(text)
    where.with_suffix(".new").rename(where)
while not where.exists():
    time.sleep(0.05)
process_group._join(*json.loads(where.read_text()), "gloo")
import torch, torch.distributed as dist
total = torch.ones(1) * (rank + 1)
dist.all_reduce(total)
hosts = sorted({
    one.laddr.ip for one in psutil.Process().net_connections("tcp") if one.status == "LISTEN"
})
dist.barrier()
print(json.dumps([total.item(), hosts]))
process_group._leave()
"""


@pytest.mark.parametrize(
    ("node", "local", "expected"),
    [
        ("192.0.2.99", 2, {"127.0.0.1"}),  # one node, whatever its Ray address is
        ("127.0.0.1", 1, {"127.0.0.1"}),  # two nodes: the node's own address and no other
    ],
)
def test_workers_listen_on_their_nodes_address_alone(tmp_path, node, local, expected):
    """Torch's store asks nobody for a token; by itself it listens on every interface."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), node, str(local), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        said, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors
        total, hosts = json.loads(said.splitlines()[-1])
        assert total == 3.0 and set(hosts) == expected
