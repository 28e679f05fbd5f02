from __future__ import annotations
from sponge_env.serve.front import Front


class RpcServer:
    port: int = 0

    async def stop(self, grace_s: float) -> None: ...


async def start_rpc(front: Front) -> RpcServer | None:
    return None
