"""Nodes in processes of their own, and a link to them that can be cut."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from sponge_env.live.remote import Address, RemoteLauncher, parse_addresses

HERE = Path(__file__).parent


class NodeProcess:
    """A ``sponge replica`` on a free port of this machine."""

    def __init__(self, *options, token="", host="127.0.0.1"):
        command = [sys.executable, *"-m sponge_env replica --port 0 --wait --host".split(), host]
        command += options or ("--model", "busy_model:Busy")
        env = os.environ | {"PYTHONPATH": f"{HERE.parent}:{HERE}", "SPONGE_REPLICA_TOKEN": token}
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        self.line = self.process.stdout.readline()
        (self.address,) = parse_addresses(self.line.split(" at ")[1].split(",")[0])

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.stdout.close()
        return self.process.wait(30)


def remote_launcher(configs):
    node = NodeProcess()
    launcher = RemoteLauncher(configs, [node.address], "")
    close = launcher.close

    def close_both():
        close()
        node.end()

    launcher.close = close_both
    return launcher


class Proxy:
    """Passes bytes on to a node, until it is cut: then it is silent and closes nothing."""

    def __init__(self, node):
        self._node, self.cut = node, threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets, self.address = [self._listener], Address(*self._listener.getsockname()[:2])
        self._run(self._accept)

    def _run(self, target, *arguments):
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                try:
                    far = socket.create_connection(self._node)
                except ConnectionRefusedError:  # the node is gone
                    near.close()
                    continue
                self._sockets += near, far
                self._run(self._pass_on, near, far)
                self._run(self._pass_on, far, near)

    def _pass_on(self, source, target):
        with suppress(OSError):
            while (data := source.recv(1 << 16)) and not self.cut.is_set():
                target.sendall(data)
            if not data:
                target.shutdown(socket.SHUT_WR)

    def close(self):
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
