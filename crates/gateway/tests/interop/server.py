"""Starts and stops the server under test, as server.mjs does for the JavaScript clients."""

import atexit
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
REFERENCE = os.environ.get("ANTIPHON_REFERENCE", "")
# The Node server does not acknowledge; its "acks" variant does, as Antiphon.
ANTIPHON_ONLY_SKIPPED = bool(REFERENCE) and REFERENCE != "acks"
# What Antiphon does otherwise than Node, on purpose.
UNLIKE_NODE_SKIPPED = bool(REFERENCE)

START_DEADLINE_S = 15
STOP_DEADLINE_S = 20


def node_program(name):
    """The command line that runs a program of this directory under Node.js."""
    return [shutil.which("node") or "node", os.path.join(HERE, name)]


def _command(port, settings, events_file):
    args = ["--listen", f"127.0.0.1:{port}", "--set", "admin.listen="]
    for key, value in settings.items():
        args += ["--set", f"{key}={value}"]
    if events_file:
        args += ["--config", events_file]
    if REFERENCE:
        return [*node_program("reference.mjs"), *args]
    if "ANTIPHON_BIN" not in os.environ:
        raise RuntimeError("set ANTIPHON_BIN to the path of the server binary (or ANTIPHON_REFERENCE=1)")
    if os.environ.get("ANTIPHON_HANDLERS"):
        examples = os.path.join(os.path.dirname(os.environ["ANTIPHON_BIN"]), "examples")
        return [os.path.join(examples, "handlers"), "--silent", *args]
    return [os.environ["ANTIPHON_BIN"], *args]


def _free_port():
    """Below the range of outgoing connections: nobody takes it while the server restarts."""
    for _ in range(100):
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise RuntimeError("no free port between 20000 and 30000")


class Server:
    """A server process on a port of its own. Whoever starts it stops it.

    `settings`: by key, and `events`: rules in the place of the default ones, both as `startServer` has them.
    """

    def __init__(self, settings=None, events=None):
        self.port = _free_port()
        self._settings = settings or {}
        self._events_file = self._write(events) if events else None
        self.url = f"http://127.0.0.1:{self.port}"
        self._child = None
        # A file, not a pipe: nobody has to read it for the server to go on.
        self._output = tempfile.TemporaryFile()
        atexit.register(self.kill)

    def _write(self, events):
        self._folder = tempfile.TemporaryDirectory(prefix="antiphon-interop-")  # gone with this object
        path = os.path.join(self._folder.name, "events.toml")
        with open(path, "w", encoding="utf-8") as file:
            for event in events:
                lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in event.items()]
                file.write("".join(["[[event]]\n", *lines]))
        return path

    def start(self):
        command = _command(self.port, self._settings, self._events_file)
        self._child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._listens():
            if self._child.poll() is not None:
                raise self._error(f"the server did not start: it exited with {self._child.returncode}")
            if time.monotonic() > deadline:
                self._child.kill()
                raise self._error(f"the server did not listen on port {self.port} within {START_DEADLINE_S} s")
            time.sleep(0.02)
        return self

    def _listens(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            return True
        except OSError:
            return False

    def stop(self):
        """SIGTERM to our own child; it must end by itself, with code 0, and must not have panicked."""
        child, self._child = self._child, None
        if child is None:
            return
        if child.poll() is not None:
            raise self._error(f"the server ended by itself with {child.returncode}")
        child.terminate()
        try:
            code = child.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise self._error(f"the server did not end within {STOP_DEADLINE_S} s after SIGTERM") from None
        if code != 0:
            raise self._error(f"after SIGTERM the server ended with {code}, not 0")
        if "panicked at" in self._printed():
            raise self._error("the server panicked")

    def kill(self):
        """For when this process ends early: leaves no server behind."""
        if self._child is not None:
            self._child.kill()

    def _printed(self):
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def _error(self, message):
        return RuntimeError(f"{message}; it printed:\n{self._printed()[-8000:].strip() or '(nothing)'}")
