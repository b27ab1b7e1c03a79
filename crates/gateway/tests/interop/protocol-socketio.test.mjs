// The clauses of the public suite of Socket.IO's protocol, revision 5 (socketio/socket.io-protocol, test-suite), as
// cases of our own, against examples/conformance.rs. One `it` for each of its 32.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { setTimeout as pass } from "node:timers/promises";
import { Polling, WebSocketLink, assertRefused, assertSocketRefused, request } from "./raw.mjs";
import { startConformance } from "./server.mjs";

const timeout = 30_000;
const PING = { intervalMs: 300, timeoutMs: 200 };
const UNKNOWN_SESSION = [1, "Session ID unknown"];
let server;

before(async () => {
  server = await startConformance();
});
after(() => server?.stop());

const open = () => Polling.open(server.url);
const openSocket = () => WebSocketLink.session(server.url);
const socketFor = ({ sid }) => WebSocketLink.open(server.url, `EIO=4&transport=websocket&sid=${sid}`);

/** Connected to "/", and greeted. */
async function connected() {
  const socket = await WebSocketLink.connect(server.url);
  await socket.expect('42["auth",{}]');
  return socket;
}

/** The session of a packet `40{"sid":…}`, after its namespace. */
function assertConnected(packet, prefix) {
  assert.ok(packet.startsWith(prefix), packet);
  const { sid, ...rest } = JSON.parse(packet.slice(prefix.length));
  assert.equal(typeof sid, "string");
  assert.deepEqual(rest, {});
}

function assertHandshake({ sid, ...rest }, upgrades) {
  assert.equal(typeof sid, "string");
  const { intervalMs: pingInterval, timeoutMs: pingTimeout } = PING;
  assert.deepEqual(rest, { upgrades, pingInterval, pingTimeout, maxPayload: 1_000_000 });
}

/** Closed because of what the client sent, not by a ping timeout. */
async function assertClosedAtOnce(socket, ...messages) {
  const since = Date.now();
  socket.send(...messages);
  await socket.closed();
  assert.ok(Date.now() - since < PING.intervalMs, `closed after ${Date.now() - since} ms`);
}

describe("Engine.IO protocol", { concurrency: true }, () => {
  describe("handshake, polling", { concurrency: true }, () => {
    it("opens a session", { timeout }, async () => {
      assertHandshake((await open()).handshake, ["websocket"]);
    });

    it("is refused with an invalid EIO", { timeout }, async () => {
      for (const query of ["transport=polling", "EIO=abc&transport=polling"]) {
        assertRefused(await request(server.url, query), 5, "Unsupported protocol version");
      }
    });

    it("is refused with an invalid transport", { timeout }, async () => {
      for (const query of ["EIO=4", "EIO=4&transport=abc"]) {
        assertRefused(await request(server.url, query), 0, "Transport unknown");
      }
    });

    it("is refused with an invalid method", { timeout }, async () => {
      for (const method of ["POST", "PUT"]) {
        assertRefused(await request(server.url, "EIO=4&transport=polling", { method }), 2, "Bad handshake method");
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
        const socket = await WebSocketLink.open(server.url, query);
        assert.ok(socket.status === 400 || socket.status === 101);
        await socket.closed();
      }
    });

    it("is refused with an invalid transport", { timeout }, async () => {
      for (const query of ["EIO=4", "EIO=4&transport=abc"]) {
        const socket = await WebSocketLink.open(server.url, query);
        assertSocketRefused(socket, "Transport unknown");
      }
    });
  });

  describe("heartbeat", { concurrency: true }, () => {
    it("pings, and takes pongs, over polling", { timeout }, async () => {
      const polling = await open();
      for (let n = 0; n < 3; n++) {
        assert.deepEqual(await polling.poll(), ["2"]);
        await polling.send("3");
      }
    });

    it("ends a session that does not answer, over polling", { timeout }, async () => {
      const polling = await open();
      // The time is what this is about: the session is gone when it is over, not somewhat later.
      await pass(PING.intervalMs + PING.timeoutMs);
      assertRefused(await polling.get(), ...UNKNOWN_SESSION);
    });

    it("pings, and takes pongs, over WebSocket", { timeout }, async () => {
      const socket = await openSocket();
      for (let n = 0; n < 3; n++) {
        assert.equal(await socket.next("a ping"), "2");
        socket.send("3");
      }
      socket.close();
    });

    it("ends a session that does not answer, over WebSocket", { timeout }, async () => {
      const socket = await openSocket();
      await socket.closed();
    });
  });

  describe("close", { concurrency: true }, () => {
    it("by a client that polls: the poll that waits is answered", { timeout }, async () => {
      const polling = await open();
      const [waiting] = await polling.beginPoll();
      await polling.send("1");
      const polled = await waiting;
      assert.deepEqual([polled.status, polled.body], [200, "6"]);
      assertRefused(await polling.get(), ...UNKNOWN_SESSION);
    });

    it("by a client over WebSocket", { timeout }, async () => {
      const socket = await openSocket();
      socket.send("1");
      await socket.closed();
    });
  });

  describe("upgrade", { concurrency: true }, () => {
    it("from polling to WebSocket", { timeout }, async () => {
      const polling = await open();
      const socket = await socketFor(polling);
      socket.send("2probe");
      assert.equal(await socket.next("the answer to the probe"), "3probe");
      socket.send("5", "40");
      assertConnected(await socket.message("CONNECT"), "40");
      socket.close();
    });

    it("leaves no polling behind", { timeout }, async () => {
      const polling = await open();
      const socket = await socketFor(polling);
      socket.send("2probe");
      await socket.expect("3probe");
      socket.send("5");
      // At once, as in the suite: a client has no answer to its `5` to wait for.
      assertRefused(await polling.get(), 3, "Bad request");
      socket.close();
    });

    it("happens once: another WebSocket for the session is closed", { timeout }, async () => {
      const polling = await open();
      const socket = await socketFor(polling);
      socket.send("2probe", "5");
      const other = await socketFor(polling);
      assert.equal(other.status, 101, other.body);
      await other.closed();
      socket.close();
    });
  });
});

describe("Socket.IO protocol", { concurrency: true }, () => {
  describe("connect", { concurrency: true }, () => {
    for (const [name, packet, answer, greeting] of [
      ['"/"', "40", "40", '42["auth",{}]'],
      ['"/" with a payload', '40{"token":"123"}', "40", '42["auth",{"token":"123"}]'],
      ["another namespace", "40/custom,", "40/custom,", '42/custom,["auth",{}]'],
      [
        "another namespace with a payload",
        '40/custom,{"token":"abc"}',
        "40/custom,",
        '42/custom,["auth",{"token":"abc"}]',
      ],
    ]) {
      it(`to ${name}`, { timeout }, async () => {
        const socket = await openSocket();
        socket.send(packet);
        assertConnected(await socket.message("CONNECT"), answer);
        await socket.expect(greeting);
        socket.close();
      });
    }

    it("to an unknown namespace is refused", { timeout }, async () => {
      const socket = await openSocket();
      socket.send("40/random");
      await socket.expect('44/random,{"message":"Invalid namespace"}');
      socket.close();
    });

    it("with anything else as the first packet ends the session", { timeout }, async () => {
      await assertClosedAtOnce(await openSocket(), "4abc");
    });

    it("must follow within the time for it", { timeout }, async () => {
      const socket = await openSocket();
      for (;;) {
        const what = await Promise.race([socket.ended, socket.next().catch(() => "the end")]);
        if (what !== "2") break;
        socket.send("3"); // so that it is not the ping timeout that ends it
      }
      await socket.closed();
    });
  });

  describe("disconnect", { concurrency: true }, () => {
    it('from "/": the session stays', { timeout }, async () => {
      const socket = await connected();
      socket.send("41");
      assert.equal(await socket.next("a ping"), "2");
      socket.close();
    });

    it("from another namespace: messages to the first go on", { timeout }, async () => {
      const socket = await connected();
      socket.send("40/custom");
      assertConnected(await socket.message("CONNECT"), "40/custom,");
      await socket.expect('42/custom,["auth",{}]');
      socket.send("41/custom", '42["message","message to main namespace"]');
      await socket.expect('42["message-back","message to main namespace"]');
      socket.close();
    });
  });

  describe("message", { concurrency: true }, () => {
    const ATTACHMENTS = [Buffer.from([1, 2, 3]), Buffer.from([4, 5, 6])];
    const PLACEHOLDERS = '{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}';

    for (const [name, sent, got, attachments] of [
      ["in text", '42["message",1,"2",{"3":[true]}]', '42["message-back",1,"2",{"3":[true]}]', []],
      ["with attachments", `452-["message",${PLACEHOLDERS}]`, `452-["message-back",${PLACEHOLDERS}]`, ATTACHMENTS],
      ["in text, acknowledged", '42456["message-with-ack",1,"2",{"3":[false]}]', '43456[1,"2",{"3":[false]}]', []],
      [
        "with attachments, acknowledged",
        `452-789["message-with-ack",${PLACEHOLDERS}]`,
        `462-789[${PLACEHOLDERS}]`,
        ATTACHMENTS,
      ],
    ]) {
      it(name, { timeout }, async () => {
        const socket = await connected();
        socket.send(sent, ...attachments);
        await socket.expect(got, ...attachments);
        socket.close();
      });
    }

    for (const [name, packet] of [
      ["an unknown type", "4abc"],
      ["a payload that is no list", "42{}"],
      ["an ack id that is no number", '42abc["message-with-ack",1,"2",{"3":[false]}]'],
    ]) {
      it(`with ${name} ends the session`, { timeout }, async () => {
        await assertClosedAtOnce(await connected(), packet);
      });
    }
  });
});
