"""What the balancer makes of a name server that fails, and of nodes that are not well: haproxy.cfg, in a real HAProxy,
with a name server and nodes that do as they are told. All of it on loopback.

    balancer.py IMAGE        the image that HAProxy is in
"""

import asyncio
import re
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = Path(__file__).resolve().parents[1] / "haproxy/haproxy.cfg"
NO_ERROR, SERVER_FAILURE, NO_SUCH_NAME, REFUSED = 0, 2, 3, 5
# HAProxy's own patience with a name server, where haproxy.cfg says nothing.
DEFAULT_HOLD_S = 30
# Requests of a few checks; each check asks for /healthz and /readyz.
KNOWN_CHECKS = 4


class NameServer(asyncio.DatagramProtocol):
    """Says `addresses`; or only `code`; or, while that is None, nothing."""

    def __init__(self, addresses):
        self.addresses = addresses
        self.code = NO_ERROR
        self.answered = 0

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, query, client):
        if self.code is None:
            return
        self.answered += 1
        end = query.index(b"\0", 12) + 5
        of_ipv4 = query[end - 4 : end - 2] == b"\0\1"
        answers = self.addresses if of_ipv4 and self.code == NO_ERROR else []
        head = query[:2] + struct.pack(">HHHHH", 0x8180 | self.code, 1, len(answers), 0, 0)
        records = b"".join(b"\xc0\x0c\0\1\0\1" + struct.pack(">IH", 0, 4) + socket.inet_aton(one) for one in answers)
        self.transport.sendto(head + query[12:end] + records, client)


class Node:
    """A client's connection is upgraded, as a WebSocket is, and echoes. The admin listener says how it is."""

    def __init__(self, address):
        self.address = address
        self.healthy = self.ready = True
        self.checks = 0
        self.writers = set()

    async def start(self, clients, admin):
        self.servers = [
            await asyncio.start_server(self.client, self.address, clients),
            await asyncio.start_server(self.asked, self.address, admin),
        ]
        return self

    def kill(self):
        for server in self.servers:
            server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def client(self, reader, writer):
        self.writers.add(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n"
                b"X-Node: " + self.address.encode() + b"\r\n\r\n"
            )
            while said := await reader.read(100):
                writer.write(said)
        except (OSError, asyncio.IncompleteReadError):
            pass
        self.writers.discard(writer)
        writer.close()

    async def asked(self, reader, writer):
        try:
            path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
            self.checks += 1
            well = {b"/healthz": self.healthy, b"/readyz": self.ready}[path]
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % (200 if well else 503))
        except (OSError, asyncio.IncompleteReadError):
            pass
        writer.close()


class Client:
    """An upgraded connection through the balancer. `node` is where it went."""

    async def connect(self, port):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        self.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode()
        self.node = found[1] if (found := re.search(r"(?i)^x-node: (\S+)", head, re.M)) else None
        return self

    async def lives(self):
        try:
            self.writer.write(b"x")
            return await asyncio.wait_for(self.reader.readexactly(1), 2) == b"x"
        except (OSError, EOFError, asyncio.TimeoutError):
            return False

    def close(self):
        self.writer.close()


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


async def connected(port, count):
    return [await Client().connect(port) for _ in range(count)]


async def alive(clients):
    return sum(await asyncio.gather(*(client.lives() for client in clients)))


async def all_alive(clients, when):
    left = await alive(clients)
    assert left == len(clients), f"{when}: {len(clients) - left} of {len(clients)} connections ended"
    print(f"  {when}: all {len(clients)} connections go on")


async def until(seconds, what, condition):
    for _ in range(seconds * 2):
        try:
            if await condition():
                return
        except (OSError, EOFError):
            pass
        await asyncio.sleep(0.5)
    raise AssertionError(f"not after {seconds} s: {what}")


async def run(image):
    public, inside, clients, admin = free_ports(4)
    names = NameServer(["127.0.0.2", "127.0.0.3"])
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: names, ("127.0.0.1", 0))
    config = CONFIG.read_text()
    for theirs, ours in (
        ("127.0.0.11:53", f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"),
        ("bind :5000", f"bind 127.0.0.1:{public}"),
        ("bind :8405", f"bind 127.0.0.1:{inside}"),
        ("port 9464", f"port {admin}"),
        ("node:5000", f"node:{clients}"),
    ):
        assert theirs in config, f"haproxy.cfg has no {theirs}"
        config = config.replace(theirs, ours)
    one, two = [await Node(address).start(clients, admin) for address in names.addresses]

    with tempfile.TemporaryDirectory() as directory, open(f"{directory}/log", "w+") as log:
        Path(directory).chmod(0o755)
        Path(directory, "haproxy.cfg").write_text(config)
        name = f"antiphon-balancer-{public}"
        haproxy = await asyncio.create_subprocess_exec(
            *("docker", "run", "--rm", "--name", name, "--network", "host", "-v", f"{directory}:/test:ro", image),
            *("haproxy", "-db", "-f", "/test/haproxy.cfg"),
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            await steps(names, one, two, public, clients, admin)
        except BaseException:
            log.seek(0)
            print("".join(log.readlines()[-40:]), file=sys.stderr)
            raise
        finally:
            subprocess.run(["docker", "rm", "--force", name], capture_output=True)
            await haproxy.wait()


async def steps(names, one, two, public, clients, admin):
    async def reaches(address):
        """Whether new clients go there, among others."""
        tried = await connected(public, 6)
        for client in tried:
            client.close()
        return address in [client.node for client in tried]

    async def both():
        return await reaches(one.address) and await reaches(two.address)

    await until(20, "both nodes have clients", both)

    async def known():
        return one.checks >= KNOWN_CHECKS and two.checks >= KNOWN_CHECKS

    # Before that, what is not well would not be noticed as such.
    await until(10, "both nodes have been asked how they are", known)
    sockets = await connected(public, 10)
    assert sorted(client.node for client in sockets) == [one.address] * 5 + [two.address] * 5, "not spread evenly"

    names.addresses = [one.address]
    await asyncio.sleep(4)
    await all_alive(sockets, "an answer lacks a node for 4 s")
    names.addresses = [one.address, two.address]
    whole_from = names.answered + 2

    async def whole():
        return names.answered >= whole_from

    await until(10, "the balancer has whole answers again", whole)

    names.code = None
    await asyncio.sleep(DEFAULT_HOLD_S + 5)
    await all_alive(sockets, f"no answer for {DEFAULT_HOLD_S + 5} s")
    for code, what in ((NO_SUCH_NAME, "no such name"), (REFUSED, "refused"), (SERVER_FAILURE, "server failure")):
        names.code = code
        await asyncio.sleep(6)
        await all_alive(sockets, what)
    assert await both(), "a node has no clients any more"
    names.code = NO_ERROR

    two.ready = False

    async def elsewhere():
        return not await reaches(two.address)

    await until(8, "new clients go to the node that is ready", elsewhere)
    await all_alive(sockets, "a node is not ready")
    newcomers = await connected(public, 6)
    assert {client.node for client in newcomers} == {one.address}, "a node that is not ready gets clients"
    print("  and new clients go elsewhere")
    two.healthy = False

    async def ended():
        return await alive(sockets) == 5

    await until(8, "the connections to a node that is stuck end", ended)
    await all_alive([client for client in sockets + newcomers if client.node == one.address], "a node is stuck: of the other")
    two.healthy = two.ready = True
    await until(8, "a node that is well again has clients", lambda: reaches(two.address))
    print("  the stuck node's ended; well again, it has new ones")
    for client in sockets + newcomers:
        client.close()

    # Another takes its place, at another address; then one more, at the address that was left.
    two.kill()
    third = await Node("127.0.0.4").start(clients, admin)
    names.addresses = [one.address, third.address]
    await until(10, "a node at a new address has clients", lambda: reaches(third.address))
    names.addresses = [one.address, two.address, third.address]
    await Node(two.address).start(clients, admin)

    await until(10, "a node at an address that was used before has clients", lambda: reaches(two.address))
    print("  replaced by a node at another address, and one more at the address that was left: both have clients")


asyncio.run(run(sys.argv[1]))
