"""A Ray cluster of several nodes on this machine: a head that clients reach by `ray://`, and nodes that can be killed.

Made by Ray's own `cluster_utils`, on loopback, without dashboard and usage reports. For the local stack and for chaos;
a real cluster is made by KubeRay or `ray start`, which find this machine's own address by themselves.
"""

import os
from types import TracebackType
from typing import Any, Self

from services.learning.shards import RAY_NICENESS
from services.loopback import free_port

NODE_BYTES = 100 << 20  # of shared memory a node: statistics are a few hundred kilobytes a policy
CPUS = 1  # a node
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": RAY_NICENESS,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else the client server turns 127.0.0.1 into this machine's outer address
}


class RayNodes:
    """A head and `nodes` − 1 further ones. The same ports serve again after `stop` and `start`."""

    def __init__(self, nodes: int = 2) -> None:
        self._nodes = nodes
        self._gcs_port, self._client_port = free_port(), free_port()
        self._cluster: Any = None
        self._others: list[Any] = []

    @property
    def url(self) -> str:
        return f"ray://127.0.0.1:{self._client_port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Head first, then the others; returns when all are part of the cluster."""
        os.environ.update(ENVIRONMENT)  # read when Ray is imported
        from ray.cluster_utils import Cluster  # takes a second, and only stacks with Ray want it

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": CPUS,
                "node_ip_address": "127.0.0.1",
                "gcs_server_port": self._gcs_port,
                "ray_client_server_port": self._client_port,
                "include_dashboard": False,
                "object_store_memory": NODE_BYTES,
            },
        )
        self._others = []
        for _ in range(self._nodes - 1):
            self.add_node()

    def add_node(self) -> None:
        self._others.append(
            self._cluster.add_node(num_cpus=CPUS, node_ip_address="127.0.0.1", object_store_memory=NODE_BYTES)
        )

    def kill_node(self) -> None:
        """kill -9 of the node that was added last, with every process of it."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def stop(self) -> None:
        """Head and all: clients lose their actors."""
        if self._cluster is not None:
            self._cluster.shutdown()
            self._cluster = None
