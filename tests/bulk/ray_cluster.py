"""A Ray cluster of several nodes on this machine, for tests of the engine that runs on one."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"


class RayCluster:
    """A head and further nodes, each with processes of its own."""

    def __init__(self, n_nodes: int, n_gpus: int) -> None:
        self._cluster = _make_cluster(n_gpus)
        self.nodes: list[Any] = [self._cluster.head_node]
        for _ in range(n_nodes - 1):
            self.add_node()

    @property
    def address(self) -> str:
        """What goes behind --ray."""
        return self._cluster.address

    def add_node(self) -> Any:
        """Start one more node."""
        node = self._cluster.add_node(num_cpus=1, **_small())
        self.nodes.append(node)
        return node

    def kill_node(self, node: Any) -> None:
        """End a node and all that runs on it, without a word to anybody."""
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_head_service(self) -> None:
        """End the service that holds the cluster together."""
        for process in self._cluster.head_node.all_processes["gcs_server"]:
            os.kill(process.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End every node, and at once the agents that would look for a killed head for another minute."""
        agents = [pid for node in self.nodes for pid in _list_children(node)]
        self._cluster.shutdown()
        for pid in agents:
            if _name(pid).startswith("ray::"):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def run_cluster(n_nodes: int, n_gpus: int = 0) -> Iterator[RayCluster]:
    """Start a cluster on loopback and end it; while it runs, RAY_AUTH_MODE is off in this process.

    Its head says it has `n_gpus` GPUs, which Ray believes.

    A Ray started on this machine before has left a token in the user's home; nodes that know of it and nodes that do
    not would refuse each other.
    """
    names = ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_UV_RUN_RUNTIME_ENV")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_UV_RUN_RUNTIME_ENV="0")
    cluster = RayCluster(n_nodes, n_gpus)
    try:
        yield cluster
    finally:
        cluster.close()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _small() -> dict[str, Any]:
    return {"node_ip_address": LOOPBACK, "object_store_memory": 100 * 2**20}


def _make_cluster(n_gpus: int) -> Any:
    services: Any = import_module("ray._private.services")
    # before Cluster is imported: Ray otherwise dials this machine's outer address (2.60)
    services.get_node_ip_address = services.node_ip_address_from_perspective = lambda *_, **__: LOOPBACK
    make: Any = import_module("ray.cluster_utils").Cluster
    head = {"num_cpus": 1, "num_gpus": n_gpus, "include_dashboard": False, **_small()}
    return make(initialize_head=True, head_node_args=head)


def _list_children(node: Any) -> list[int]:
    """Return what runs under a node's raylet."""
    pids = [process.process.pid for process in node.all_processes["raylet"]]
    lists = [Path(f"/proc/{pid}/task/{pid}/children") for pid in pids]
    return [int(child) for children in lists if children.exists() for child in children.read_text().split()]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
