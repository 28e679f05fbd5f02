"""Shared memory that clients name: Triton's own clients, and what goes wrong."""

import os
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from raw_http import Wire, request
from served import running
from test_serve_clients import CLIENTS, ROWS, SUMS, Client, plain
from tritonclient.utils import InferenceServerException

from sponge_env.errors import ConfigError
from sponge_env.serve.options import ServeOptions
from sponge_env.serve.rpc.codec import SERVICE
from sponge_env.serve.wire.outcomes import WireError
from sponge_env.serve.wire.regions import FOLDER, MAX_REGIONS, OFFSET, REGION, SIZE, Regions

OPTIONS = {"shared_memory": True}


@pytest.fixture
def path():
    path = Path(FOLDER, f"sponge-test-{uuid4().hex}")
    path.write_bytes(bytes(range(64)))
    yield path
    path.unlink(missing_ok=True)


@pytest.mark.parametrize("kind", CLIENTS)
def test_tensors_go_both_ways(kind, server, path):
    client = Client(kind, server)
    assert "system_shared_memory" in plain(client, client.get_server_metadata())["extensions"]
    client.unregister_cuda_shared_memory()
    client.register_system_shared_memory("both", f"/{path.name}", 56, offset=8)
    path.write_bytes(bytes(8) + ROWS.tobytes() + bytes(24))
    tensor, output = client.tensor(), client.output()
    tensor.set_shared_memory("both", ROWS.nbytes)
    output.set_shared_memory("both", SUMS.nbytes, offset=40)
    client.infer("tiny", [tensor], outputs=[output])
    assert path.read_bytes() == bytes(8) + ROWS.tobytes() + bytes(8) + SUMS.tobytes()
    status = plain(client, client.get_system_shared_memory_status())
    (about,) = status if client.over_http else status["regions"].values()
    assert (about["key"], int(about["byte_size"])) == (f"/{path.name}", 56)
    output.set_shared_memory("both", SUMS.nbytes - 1)
    with pytest.raises(InferenceServerException, match="do not fit"):
        client.infer("tiny", [tensor], outputs=[output])
    client.unregister_system_shared_memory("both")
    assert not plain(client, client.get_system_shared_memory_status())
    with pytest.raises(InferenceServerException, match="no region 'both'"):
        client.infer("tiny", [tensor])


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_clients_of_a_proxy_name_no_region(kind, server, path):
    client = Client(kind, server)
    client.register_system_shared_memory("own", f"/{path.name}", 64)
    tensor, proxied = client.tensor(), {"x-forwarded-for": "1.2.3.4"}
    tensor.set_shared_memory("own", ROWS.nbytes)
    with pytest.raises(InferenceServerException, match="not supported here"):
        client.infer("tiny", [tensor], headers=proxied)
    client.unregister_system_shared_memory()


def fails(work, text):
    with pytest.raises(WireError, match=text) as raised:
        work()
    assert "\n" not in raised.value.sentence


def test_what_is_no_shared_memory_is_not_opened(path):
    regions = Regions(1000)
    link, pipe = (path.with_name(f"{path.name}-{what}") for what in ("link", "pipe"))
    link.symlink_to(path)
    os.mkfifo(pipe)
    try:
        reasons = {
            "missing": "No such", link.name: "symbolic", pipe.name: "regular", ".": "directory",
            "": "directory", "a\0b": "null", "\ud800": "codec", f"../shm/{path.name}": "not a name",
        }  # fmt: skip
        for key, reason in reasons.items():
            fails(lambda key=key: regions.register("a", key, 0, 8), f"memory .*: .*{reason}")
        fails(lambda: regions.register("a", path.name, 60, 5), "fewer than 65 bytes")
        fails(lambda: regions.register("a" * 256, path.name, 0, 8), "at most 255 characters")
        for wrong in ((None, 0, 8), (path.name, -1, 8), (path.name, 0, 8.0), (path.name, 0, True)):
            fails(lambda wrong=wrong: regions.register("a", *wrong), "has a key")
    finally:
        link.unlink()
        pipe.unlink()
    fails(lambda: regions.status("0"), "no region")
    for k in range(MAX_REGIONS):
        regions.register(str(k), path.name, 0, 8)
    fails(lambda: regions.register("more", path.name, 0, 8), "is the most")
    regions.unregister("0")
    fails(lambda: regions.register("1", path.name, 0, 8), "registered already")
    regions.unregister()
    assert not regions.status()


def test_files_are_closed_once_nobody_uses_them(path):
    def opened():
        links = [os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")]
        return links.count(str(path))

    regions = Regions(1000)
    regions.register("a", path.name, 8, 40)
    place = regions.place({REGION: "a", SIZE: 4, OFFSET: 2}, "input")
    regions.unregister()
    assert (place.read(), opened()) == (bytes(range(10, 14)), 1)
    del place
    assert opened() == 0


def test_memory_that_is_cut_is_told(path):
    """A map of it would end the process."""
    regions = Regions(50)
    regions.register("a", path.name, 0, 64)
    for wrong in ({SIZE: 60}, {}, {SIZE: 8, OFFSET: -1}, {SIZE: 8, OFFSET: "0"}):
        fails(lambda wrong=wrong: regions.place({REGION: "a", **wrong}, "t"), "at most 50")
    fails(lambda: regions.place({REGION: "a", SIZE: 8, OFFSET: 57}, "t"), "beyond")
    fails(lambda: regions.place({REGION: ["a"], SIZE: 8}, "t"), "no region")
    place = regions.place({REGION: "a", SIZE: 50}, "t")
    fails(lambda: place.write(bytes(51)), "do not fit")
    os.truncate(path, 49)
    fails(place.read, "was cut")
    fails(lambda: place.write(bytes(50)), "do not fit")
    assert path.stat().st_size == 49


def test_a_server_for_others_shares_memory_by_token_only():
    assert ServeOptions(host="0.0.0.0", token="t", shared_memory=True).shared_memory
    with pytest.raises(ConfigError, match="needs a token"):
        ServeOptions(host="0.0.0.0", shared_memory=True)


def test_only_clients_of_this_machine_share_memory():
    with running(shared_memory=True) as on, running() as off, Wire(on) as wire, Wire(off) as other:
        told, path = [], "/v2/systemsharedmemory/status"
        for where, said in ((wire, {"x_forwarded_for": "1.2.3.4"}), (wire, {}), (other, {})):
            told.append(where.send(request(path=path, method="GET", **said)).answer())
        assert [each.status for each in told] == [403, 200, 404]
        big = wire.send(request(b"[" * 70_000, path="/v2/systemsharedmemory/region/a/register"))
        assert big.answer().status == 413
        cuda = "/v2/cudasharedmemory/region/a/register"
        assert wire.send(request(b"{}", path=cuda)).answer().status == 404
        with grpc.insecure_channel(on.grpc) as channel:
            status = channel.unary_unary(f"/{SERVICE}/SystemSharedMemoryStatus")
            with pytest.raises(grpc.RpcError, match="only for clients on this machine"):
                status(b"", metadata=[("x-forwarded-for", "1.2.3.4")], timeout=20)
