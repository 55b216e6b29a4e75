"""Stand-in until the real one lands: listens, serves nothing."""

from __future__ import annotations

import grpc

from services.replica.replica import Replica


class ReplicaServer:
    """serves swaa.v1.Replica for one Replica"""

    def __init__(self, replica: Replica, host: str, port: int) -> None:
        self._replica = replica
        self._host = host
        self._port = port
        self._server: grpc.aio.Server | None = None

    async def start(self) -> None:
        self._server = grpc.aio.server()
        self._port = self._server.add_insecure_port(f"{self._host}:{self._port}")
        await self._server.start()

    @property
    def address(self) -> str:
        return f"{self._host}:{self._port}"

    async def stop(self, grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)
