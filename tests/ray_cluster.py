"""A Ray cluster of two nodes on this machine, in a process of its own that is told what to do line by line.

`worker` kills one working actor, `node` kills the second node with all that runs on it and starts another one, `quit`
or the end of input ends everything. Each is answered with a line. Kills are SIGKILLs: nobody gets to clean up.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path


def descendants(root: int) -> Iterator[int]:
    """Processes that this one started, and theirs."""
    parents: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(
                int(status.parent.name)
            )
    todo = [root]
    while todo:
        found = parents.get(todo.pop(), [])
        yield from found
        todo += found


def working() -> list[int]:
    """Processes that hold an actor."""
    found = []
    for child in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if b"ray::Worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
    return sorted(found)


def main() -> None:
    # Ray and its children write to standard output; answers go where that was.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  Ray would let all others go first
    os.environ["RAY_raylet_start_wait_time_s"] = "300"  # noqa: SIM112  on a busy machine a node takes its time
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "_system_config": quick})
    small.pop("include_dashboard")
    second = cluster.add_node(wait=False, **small)
    cluster.wait_for_nodes(timeout=300)
    stream = random.Random(0)
    print(cluster.address, file=answers)
    try:
        for line in sys.stdin:
            order = line.strip()
            if order == "worker":
                if pids := working():
                    os.kill(stream.choice(pids), signal.SIGKILL)
            elif order == "node":
                cluster.remove_node(second, allow_graceful=False)
                second = cluster.add_node(wait=False, **small)
            elif order == "quit":
                break
            print("done", file=answers)
    finally:
        cluster.shutdown()
        print("ended", file=answers)


if __name__ == "__main__":
    main()
