// The clauses of the public suite of Engine.IO's protocol, revision 4 (socketio/engine.io-protocol, test-suite), as
// cases of our own, against examples/conformance.rs, which has an engine that echoes at /engine.io/. One `it` for
// each of its 24.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as pass } from "node:timers/promises";
import { Polling, WebSocketLink, assertRefused, assertSocketRefused, request } from "./raw.mjs";
import { startConformance } from "./server.mjs";

const timeout = 30_000;
const PATH = "/engine.io/";
const PING = { intervalMs: 300, timeoutMs: 200 };
const UNKNOWN_SESSION = [1, "Session ID unknown"];
let server;

before(async () => {
  server = await startConformance();
});
after(() => server?.stop());

const open = () => Polling.open(server.url, { path: PATH });
const openSocket = () => WebSocketLink.session(server.url, { path: PATH });
const ask = (query, options) => request(server.url, query, { path: PATH, ...options });
const handshake = (query) => WebSocketLink.open(server.url, query, { path: PATH });
/** A WebSocket for a session that exists. */
const socketFor = ({ sid }) => handshake(`EIO=4&transport=websocket&sid=${sid}`);

function assertHandshake({ sid, ...rest }, upgrades) {
  assert.equal(typeof sid, "string");
  const { intervalMs: pingInterval, timeoutMs: pingTimeout } = PING;
  assert.deepEqual(rest, { upgrades, pingInterval, pingTimeout, maxPayload: 1_000_000 });
}

/** The session is no more. */
async function assertGone(polling) {
  assertRefused(await polling.get(), ...UNKNOWN_SESSION);
}

describe("Engine.IO protocol", { concurrency: true }, () => {
  describe("handshake, polling", { concurrency: true }, () => {
    it("opens a session", { timeout }, async () => {
      assertHandshake((await open()).handshake, ["websocket"]);
    });

    it("is refused with an invalid EIO", { timeout }, async () => {
      for (const query of ["transport=polling", "EIO=abc&transport=polling"]) {
        assertRefused(await ask(query), 5, "Unsupported protocol version");
      }
    });

    it("is refused with an invalid transport", { timeout }, async () => {
      for (const query of ["EIO=4", "EIO=4&transport=abc"]) assertRefused(await ask(query), 0, "Transport unknown");
    });

    it("is refused with an invalid method", { timeout }, async () => {
      for (const method of ["POST", "PUT"]) {
        assertRefused(await ask("EIO=4&transport=polling", { method }), 2, "Bad handshake method");
      }
    });
  });

  describe("handshake, WebSocket", { concurrency: true }, () => {
    it("opens a session", { timeout }, async () => {
      const socket = await openSocket();
      assertHandshake(socket.handshake, []);
      socket.close();
    });

    it("is refused with an invalid EIO", { timeout }, async () => {
      for (const query of ["transport=websocket", "EIO=abc&transport=websocket"]) {
        // Node answers 101 first, and then 400 into the open WebSocket.
        const socket = await handshake(query);
        assert.ok(socket.status === 400 || socket.status === 101);
        await socket.closed();
      }
    });

    it("is refused with an invalid transport", { timeout }, async () => {
      for (const query of ["EIO=4", "EIO=4&transport=abc"]) {
        const socket = await handshake(query);
        assertSocketRefused(socket, "Transport unknown");
      }
    });
  });

  describe("messages, polling", { concurrency: true }, () => {
    for (const [name, payload] of [
      ["one text packet", "4hello"],
      ["several text packets", "4test1\u001e4test2\u001e4test3"],
      ["text and binary packets", "4hello\u001ebAQIDBA=="],
    ]) {
      it(`come back in one payload: ${name}`, { timeout }, async () => {
        const polling = await open();
        await polling.send(payload);
        const answer = await polling.get();
        assert.deepEqual([answer.status, answer.body], [200, payload]);
      });
    }

    it("end the session when they cannot be read", { timeout }, async () => {
      const polling = await open();
      // The suite accepts any answer to it: Node says "ok", 400 would be clearer.
      const { status } = await polling.post("abc").catch(() => ({ status: 400 }));
      assert.ok(status === 200 || status === 400, `status ${status}`);
      await assertGone(polling);
    });

    it("end the session when two polls wait", { timeout }, async () => {
      const polling = await open();
      const [waiting] = await polling.beginPoll();
      const [refused, closed] = [await polling.getBeside(), await waiting];
      assert.deepEqual([closed.status, closed.body, refused.status], [200, "1", 400]);
      await assertGone(polling);
    });
  });

  describe("messages, WebSocket", { concurrency: true }, () => {
    for (const [name, message] of [
      ["text", "4hello"],
      ["binary", Buffer.from([1, 2, 3, 4])],
    ]) {
      it(`come back: ${name}`, { timeout }, async () => {
        const socket = await openSocket();
        socket.send(message);
        assert.deepEqual(await socket.next(), message);
        socket.close();
      });
    }

    it("end the session when they cannot be read", { timeout }, async () => {
      const socket = await openSocket();
      const since = Date.now();
      socket.send("abc");
      await socket.closed();
      assert.ok(Date.now() - since < PING.intervalMs, "not by the ping timeout");
    });
  });

  describe("heartbeat, polling", { concurrency: true }, () => {
    it("pings, and takes pongs", { timeout }, async () => {
      const polling = await open();
      for (let n = 0; n < 3; n++) {
        assert.deepEqual(await polling.poll(), ["2"]);
        await polling.send("3");
      }
    });

    it("ends a session that does not answer", { timeout }, async () => {
      const polling = await open();
      // The time is what this is about: the session is gone when it is over, not somewhat later.
      await pass(PING.intervalMs + PING.timeoutMs);
      await assertGone(polling);
    });
  });

  describe("heartbeat, WebSocket", { concurrency: true }, () => {
    it("pings, and takes pongs", { timeout }, async () => {
      const socket = await openSocket();
      for (let n = 0; n < 3; n++) {
        assert.equal(await socket.next("a ping"), "2");
        socket.send("3");
      }
      socket.close();
    });

    it("ends a session that does not answer", { timeout }, async () => {
      const socket = await openSocket();
      await socket.closed();
    });
  });

  describe("close", { concurrency: true }, () => {
    it("by a client that polls: the poll that waits is answered", { timeout }, async () => {
      const polling = await open();
      const [waiting] = await polling.beginPoll();
      const [posted, polled] = [await polling.post("1"), await waiting];
      assert.deepEqual([polled.status, polled.body], [200, "6"]);
      assert.deepEqual([posted.status, posted.body], [200, "ok"]);
      await assertGone(polling);
    });

    it("by a client over WebSocket", { timeout }, async () => {
      const socket = await openSocket();
      const since = Date.now();
      socket.send("1");
      await socket.closed();
      assert.ok(Date.now() - since < PING.intervalMs + PING.timeoutMs + 200, "by the ping timeout at the latest");
    });
  });

  describe("upgrade", { concurrency: true }, () => {
    it("from polling to WebSocket", { timeout }, async () => {
      const polling = await open();
      const socket = await socketFor(polling);
      socket.send("2probe");
      assert.equal(await socket.next("the answer to the probe"), "3probe");
      // So that the client can stop polling.
      assert.deepEqual(await polling.poll(), ["6"]);
      socket.send("5", "4hello");
      assert.equal(await socket.next(), "4hello");
      socket.close();
    });

    it("leaves no polling behind", { timeout }, async () => {
      const polling = await open();
      const socket = await socketFor(polling);
      // The suite does not wait for the answer to its probe. A server with several threads may then take the poll first.
      socket.send("2probe");
      await socket.expect("3probe");
      socket.send("5");
      // At once: a client has no answer to its `5` to wait for.
      assertRefused(await polling.get(), 3, "Bad request");
      socket.send("4hello");
      await socket.expect("4hello");
      socket.close();
    });

    it("happens once: another WebSocket for the session is closed", { timeout }, async () => {
      const polling = await open();
      const socket = await socketFor(polling);
      socket.send("2probe", "5");
      const other = await socketFor(polling);
      // 101 and then the close: to a browser both are the same, to the suite's client under Node.js they are not.
      assert.equal(other.status, 101, other.body);
      await other.closed();
      assert.notEqual(other.closeCode, undefined, "closed with a close frame");
      socket.send("4hello");
      await socket.expect("3probe", "4hello");
      socket.close();
    });
  });
});
