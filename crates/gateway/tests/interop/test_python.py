"""python-socketio's client against the server: over WebSocket, polling with upgrade, polling alone."""

import os
import queue
import threading
import time
import unittest

# A proxy of the environment must not come between the clients and the loopback.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1"

import socketio  # noqa: E402

from server import ANTIPHON_ONLY_SKIPPED, Server  # noqa: E402

TRANSPORTS = {
    "websocket": ["websocket"],
    "upgrade": ["polling", "websocket"],
    "polling": ["polling"],
}
EVENTS = ("chat_message", "server_message", "error")
DEADLINE_S = float(os.environ.get("INTEROP_DEADLINE_MS", 10_000)) / 1000
RECONNECT_DEADLINE_S = 20

BYTES = bytes([0, 1, 2, 0xFE, 0xFF])
# What is passed to emit(), and the arguments that a listener gets: a tuple is several arguments.
PAYLOADS = {
    "text": ("hello", ["hello"]),
    "a dict": ({"user": "bob", "n": [1, {"deep": None}]}, [{"user": "bob", "n": [1, {"deep": None}]}]),
    "several arguments": (("room", {"user": "bob"}, 42, [1, "two"]), ["room", {"user": "bob"}, 42, [1, "two"]]),
    "a list": ([1, "two"], [[1, "two"]]),
    "nested bytes": ([{"a": BYTES, "b": [b"second", "x"]}], [[{"a": BYTES, "b": [b"second", "x"]}]]),
    "bytes among several arguments": (("file", BYTES, {"b": b""}), ["file", BYTES, {"b": b""}]),
    "unicode": (("😀👩‍👩‍👧", {"ключ🔑": "漢字"}, "a\u001eb\u0000c\u2028"), ["😀👩‍👩‍👧", {"ключ🔑": "漢字"}, "a\u001eb\u0000c\u2028"]),
    "a lone surrogate": ("\ud83d", ["\ud83d"]),
    "empty text": ("", [""]),
    "no arguments": (None, []),
    "null": ((None,), [None]),
    "empty containers": (({}, []), [{}, []]),
    "large text": ("0123456789" * 90_000, ["0123456789" * 90_000]),
    "large bytes": (bytes(range(256)) * 2000, [bytes(range(256)) * 2000]),
}


def short(value):
    text = repr(value)
    return text if len(text) < 300 else f"{text[:200]}… ({len(text)} characters)"


class Client:
    """A connected client whose events are read one by one, none skipped."""

    def __init__(
        self, server, transport, reconnection=False, connect=True, events=EVENTS, request_timeout=5, **options
    ):
        self.server = server
        self.transport = transport
        self.name = f"python {transport}"
        self.connects = 0
        self.reasons = []
        self.gone = threading.Event()
        self.connected = threading.Event()
        self._arrived = queue.Queue()
        self.sio = sio = socketio.Client(reconnection=reconnection, request_timeout=request_timeout)
        for event in events:
            sio.on(event, lambda *args, event=event: self._arrived.put((event, list(args))))
        sio.on("connect", self._on_connect)
        sio.on("disconnect", self._on_disconnect)
        if connect:
            self.connect(**options)

    def connect(self, query="", uses=None, **options):
        """`uses`: the transport that it ends with."""
        url = f"{self.server.url}{query}"
        self.sio.connect(url, transports=TRANSPORTS[self.transport], wait_timeout=DEADLINE_S, **options)
        expected = uses or ("polling" if self.transport == "polling" else "websocket")
        assert self.sio.transport() == expected, f"{self.name}: uses {self.sio.transport()}"

    def _on_connect(self):
        self.connects += 1
        self.connected.set()

    def _on_disconnect(self, reason):
        self.reasons.append(reason)
        self.connected.clear()
        self.gone.set()

    def emit(self, event, data=None, **options):
        self.sio.emit(event, data, **options)

    def next(self, what="an event"):
        """The next event and its arguments, whichever it is."""
        try:
            return self._arrived.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"{self.name} waits for {what}: nothing within {DEADLINE_S} s") from None

    def expect(self, event, *args):
        want = (event, list(args))
        got = self.next(short(want))
        if got != want:
            raise AssertionError(f"{self.name}: expected {short(want)}, got {short(got)}")

    def ask(self, event, data=None):
        """Emits and returns the arguments that the callback of the acknowledgement got."""
        answers = queue.Queue()
        self.sio.emit(event, data, callback=lambda *args: answers.put(list(args)))
        try:
            return answers.get(timeout=DEADLINE_S)
        except queue.Empty:
            raise AssertionError(f"{self.name}: no ack of {event} within {DEADLINE_S} s") from None

    def leave(self):
        if self.sio.transport() == "polling":
            # disconnect() would wait for the pending poll; when its writer is busy at that moment, the farewell
            # is never sent and the poll lasts until the server's next ping.
            self.sio.eio.disconnect(abort=True)
        else:
            self.sio.disconnect()

    def close(self):
        if self.sio.connected:
            self.leave()
        self.sio.shutdown()  # ends the attempts to reconnect


class Messages:
    """The tests for one transport; the classes below name it."""

    transport = ""

    @classmethod
    def setUpClass(cls):
        cls.server = Server().start()
        cls.addClassCleanup(cls.server.stop)

    def setUp(self):
        self.one = self.client()
        self.two = self.client()

    def client(self, **options):
        client = Client(self.server, self.transport, **options)
        self.addCleanup(client.close)
        return client

    def test_chat_message_reaches_both(self):
        for data, args in PAYLOADS.values():
            self.one.emit("chat_message", data)
            self.one.expect("chat_message", *args)
            self.two.expect("chat_message", *args)

    def test_server_message_comes_back_to_its_sender_alone(self):
        for data, args in PAYLOADS.values():
            self.one.emit("server_message", data)
            self.one.expect("server_message", *args)
        # Had the other got one of them, it would stand before the marker.
        self.one.emit("chat_message", "marker")
        self.two.expect("chat_message", "marker")

    def test_100_messages_keep_their_order(self):
        messages = [[n, "é😀", {"b": BYTES}] if n % 5 == 0 else [n, "漢字😀"] for n in range(100)]
        # python-engineio gives a connection up when one polling payload holds more than 16 packets
        # (Payload.max_decode_packets), so over polling fewer than that are under way at a time.
        at_a_time = 10 if self.transport == "polling" else 100
        for start in range(0, 100, at_a_time):
            part = messages[start : start + at_a_time]
            for args in part:
                self.one.emit("chat_message", tuple(args))
            for client in (self.one, self.two):
                for args in part:
                    client.expect("chat_message", *args)

    def test_unknown_event_is_ignored(self):
        self.one.emit("no_such_event", {"b": BYTES})
        self.one.emit("chat_message", "marker")
        self.one.expect("chat_message", "marker")
        self.two.expect("chat_message", "marker")

    def test_unknown_namespace_is_refused(self):
        client = self.client(connect=False)
        refusals = queue.Queue()
        connections = queue.Queue()
        client.sio.on("connect_error", refusals.put, namespace="/no-such-namespace")
        client.sio.on("connect", lambda: connections.put("a namespace that does not exist"), "/no-such-namespace")
        client.connect(namespaces=["/", "/no-such-namespace"], wait=False)
        self.assertEqual(refusals.get(timeout=DEADLINE_S), {"message": "Invalid namespace"})
        self.assertTrue(client.connected.wait(DEADLINE_S))
        client.emit("server_message", "the other namespace is there")
        client.expect("server_message", "the other namespace is there")
        self.assertTrue(connections.empty())

    def test_connects_with_auth_headers_and_query(self):
        headers = {"Origin": "http://chat.example", "Authorization": "Bearer x"}
        client = self.client(query="?token=a%20b", headers=headers, auth={"token": "secret"})
        client.emit("server_message", "hello")
        client.expect("server_message", "hello")

    def test_leaves_and_returns(self):
        self.one.leave()
        self.assertEqual(self.one.reasons, [socketio.Client.reason.CLIENT_DISCONNECT])
        self.two.emit("chat_message", "it is gone")
        self.two.expect("chat_message", "it is gone")
        if self.transport == "polling":
            self.one = self.client()  # the old one still has its poll to finish
        else:
            self.one.connect()
        self.two.emit("chat_message", "it is back")
        for client in (self.one, self.two):
            client.expect("chat_message", "it is back")

    @unittest.skipIf(ANTIPHON_ONLY_SKIPPED, "Antiphon only")
    def test_acknowledgements(self):
        for name, (data, args) in PAYLOADS.items():
            self.assertEqual(self.one.ask("chat_message", data), [{"ok": True}], name)
            self.one.expect("chat_message", *args)
            self.two.expect("chat_message", *args)
        self.assertEqual(self.one.ask("server_message", "x"), [{"ok": True}])
        self.one.expect("server_message", "x")
        if not os.environ.get("ANTIPHON_HANDLERS"):  # There an application may be listening.
            self.assertEqual(self.one.ask("no_such_event"), [{"ok": False, "error": "unknown_event"}])

    def test_comes_back_after_a_restart(self):
        server = Server().start()
        try:
            client = Client(server, self.transport, reconnection=True)
            self.addCleanup(client.close)
            for round in range(2):
                client.emit("chat_message", round)
                client.expect("chat_message", round)
                client.gone.clear()
                server.stop()
                self.assertTrue(client.gone.wait(DEADLINE_S), "the client did not notice the shutdown")
                # That reason is final: the client would not come back.
                self.assertNotEqual(client.reasons[-1], socketio.Client.reason.SERVER_DISCONNECT)
                server.start()
                self.assertTrue(client.connected.wait(RECONNECT_DEADLINE_S), "the client did not come back")
            client.emit("chat_message", "back")
            client.emit("server_message", "once")
            client.expect("chat_message", "back")
            client.expect("server_message", "once")
        finally:
            server.stop()


class WebSocket(Messages, unittest.TestCase):
    transport = "websocket"


class PollingWithUpgrade(Messages, unittest.TestCase):
    transport = "upgrade"


class Polling(Messages, unittest.TestCase):
    transport = "polling"


if __name__ == "__main__":
    unittest.main(warnings="ignore")  # the clients leave closing their sockets to the collector
