"""python-socketio's client where the wire is not as it should be: behind proxies that break WebSocket, with senders
that write packets in their own way, with many packets at a time, and with its own way to name an origin."""

import json
import subprocess
import threading
import time
import unittest

import websocket

from server import UNLIKE_NODE_SKIPPED, Server, node_program
from test_python import BYTES, DEADLINE_S, EVENTS, TRANSPORTS, Client

# Short, so that the server gives up a probe, and pings, while a test looks on.
SHORT = {"session.upgrade_timeout": "500ms", "session.ping_interval": "300ms", "drain.spread": "0s"}
# As in proxy.mjs.
FAULTS = ("drop", "swallow", "never", "502")
MARKER = "the end"


def until(condition, what):
    deadline = time.monotonic() + 1.5 * DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {1.5 * DEADLINE_S} s")
        time.sleep(0.02)


class Proxy:
    """proxy.mjs in front of a server, and what it has seen."""

    def __init__(self, server, fault):
        command = [*node_program("proxy.mjs"), str(server.port), fault]
        self._child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{json.loads(self._child.stdout.readline())['port']}"
        self.requests = []
        self.upgrades = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self._child.stdout:
            seen = json.loads(line)
            if "request" in seen:
                self.requests.append(seen["request"])
            else:
                self.upgrades.append(seen["upgrade"])

    @property
    def polls(self):
        return sum(request["method"] == "GET" for request in list(self.requests))

    @property
    def heartbeats(self):
        return sum(request["body"] == "3" for request in list(self.requests))

    def stop(self):
        self._child.kill()
        self._child.wait()
        self._child.stdout.close()


class Raw:
    """A sender that writes what the tests say, over WebSocket."""

    def __init__(self, server):
        url = server.url.replace("http", "ws")
        self._socket = websocket.create_connection(
            f"{url}/socket.io/?EIO=4&transport=websocket", timeout=DEADLINE_S, suppress_origin=True
        )
        assert self._socket.recv().startswith("0{")
        self._socket.send("40")
        assert self._socket.recv().startswith("40{")

    def send(self, *packets):
        for packet in packets:
            if isinstance(packet, bytes):
                self._socket.send_binary(packet)
            else:
                self._socket.send(packet)

    def close(self):
        self._socket.close()


class Case(unittest.TestCase):
    settings = {"drain.spread": "0s"}
    events = None

    @classmethod
    def setUpClass(cls):
        cls.server = Server(cls.settings, cls.events).start()
        cls.addClassCleanup(cls.server.stop)

    def client(self, transport, server=None, **options):
        client = Client(server or self.server, transport, **options)
        self.addCleanup(client.close)
        return client

    def clients(self, **options):
        """One for each transport."""
        return [self.client(transport, **options) for transport in TRANSPORTS]

    def raw(self):
        raw = Raw(self.server)
        self.addCleanup(raw.close)
        return raw


class BehindProxies(Case):
    """With its usual transports, where WebSocket is broken, it stays on polling, as with Node."""

    settings = SHORT
    ECHOES = 30
    HEARTBEATS = 3

    def test_stays_on_polling(self):
        failures = []
        threads = [threading.Thread(target=self._stays, args=(fault, failures)) for fault in FAULTS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(failures, [])

    def _stays(self, fault, failures):
        proxy = Proxy(self.server, fault)
        client = Client(proxy, "upgrade", connect=False, request_timeout=1)
        client.name = f"python behind {fault}"
        try:
            client.connect(uses="polling")
            self._echo(client, self.ECHOES)
            until(lambda: any(upgrade["over"] for upgrade in proxy.upgrades), f"{client.name}: its probe ends")
            self._echo(client, self.ECHOES)
            polls, heartbeats = proxy.polls, proxy.heartbeats
            until(lambda: proxy.heartbeats >= heartbeats + self.HEARTBEATS, f"heartbeats of {client.name}")
            made = proxy.polls - polls
            assert made <= self.HEARTBEATS + 2, f"{client.name}: {made} polls in {self.HEARTBEATS} heartbeats"
            self._echo(client, 1)
            assert client.connects == 1, f"{client.name}: {client.connects} connects"
            assert client.reasons == [], f"{client.name}: {client.reasons}"
        except Exception as error:
            failures.append(f"{fault}: {error!r}")
        finally:
            client.close()
            proxy.stop()

    def _echo(self, client, count):
        for n in range(count):
            client.emit("server_message", n)
            client.expect("server_message", n)


class Names(Case):
    NAMES = ("chat/message", "café", 'a"b', "漢字", "rocket 🚀")
    events = [{"name": name, "action": "broadcast"} for name in (*NAMES, "chat_message")]

    def test_of_events_may_be_anything(self):
        # This client writes all but ASCII as escapes.
        clients = self.clients(events=(*self.NAMES, *EVENTS))
        for sender in clients:
            for name in self.NAMES:
                sender.emit(name, {"from": sender.name})
                for client in clients:
                    client.expect(name, {"from": sender.name})

    def test_of_events_may_be_written_in_any_way(self):
        clients = self.clients(events=(*self.NAMES, *EVENTS))
        raw = self.raw()
        raw.send('42["chat\\/message",1]', '42["caf\\u00e9",2]', '42["\\u0061\\u0022b",3]')
        raw.send('42["no\\/such"]', '42[7,"x"]', f'42["chat_message","{MARKER}"]')
        for client in clients:
            client.expect("chat/message", 1)
            client.expect("café", 2)
            client.expect('a"b', 3)
            client.expect("chat_message", MARKER)


class Packets(Case):
    """What another client sends must not keep this one from hearing the rest.

    Nothing here has good attachments: this client handles every message in a thread of its own, so that it may take
    an attachment before its event.
    """

    def assert_hears(self, clients, raw):
        raw.send(f'42["chat_message","{MARKER}"]')
        for client in clients:
            client.expect("chat_message", MARKER)
            self.assertEqual(client.reasons, [], client.name)

    def test_white_space_before_the_arguments(self):
        clients, raw = self.clients(), self.raw()
        for space in (" ", "\t", "\n", "\r\n", " \t\n "):
            raw.send(f'42{space}["chat_message","x"]')
            for client in clients:
                client.expect("chat_message", "x")
        self.assert_hears(clients, raw)

    @unittest.skipIf(UNLIKE_NODE_SKIPPED, "Node relays them")
    def test_bad_placeholders(self):
        clients, raw = self.clients(), self.raw()
        good = '{"_placeholder":true,"num":0}'
        for bad in (
            '{"_placeholder":1,"num":0}',
            '{"_placeholder":1,"num":5}',
            '{"_placeholder":"true","num":0}',
            '{"_placeholder":[0]}',
            '{"_placeholder":true}',
            '{"_placeholder":true,"num":1}',
            '{"_placeholder":true,"num":-1}',
            '{"_placeholder":true,"num":"0"}',
            '{"\\u005fplaceholder":1,"num":9}',
        ):
            raw.send(f'451-["chat_message",{good},{bad}]', BYTES)
            raw.send(f'451-["chat_message",{bad},{good}]', BYTES)
        self.assert_hears(clients, raw)

    def test_huge_numbers(self):
        clients, raw = self.clients(), self.raw()
        for number in ("9" * 4301, "-" + "9" * 100_000):
            raw.send(f'42["chat_message",{number}]')
            raw.send('42["chat_message","after it"]')
            for client in clients:
                event, args = client.next()
                if args != ["after it"]:
                    self.assertEqual((event, args), ("chat_message", [None]), "as Node sends it")
                    client.expect("chat_message", "after it")
        self.assert_hears(clients, raw)


class ManyAtOnce(Case):
    @unittest.skipIf(UNLIKE_NODE_SKIPPED, "Node sends more than 16 packets in one answer, and the client gives up")
    def test_100_quick_events_by_polling(self):
        client, raw = self.client("polling"), self.raw()
        raw.send(*(f'42["chat_message",{n}]' for n in range(100)))
        # Not in order: this client handles every message in a thread of its own.
        got = sorted(client.next(f"event {n}")[1][0] for n in range(100))
        self.assertEqual(got, list(range(100)))
        self.assertEqual(client.reasons, [])


class Origins(Case):
    settings = {**Case.settings, "cors.allowed_origins": "https://app.example"}

    def test_its_own_server_is_one_that_may_connect(self):
        # Over WebSocket it says that it comes from the server's own URL.
        for client in self.clients():
            client.emit("server_message", client.name)
            client.expect("server_message", client.name)


if __name__ == "__main__":
    unittest.main(warnings="ignore")  # the clients leave closing their sockets to the collector
