// Clients with their usual transports behind proxies that break WebSocket: they go on by polling, as with Node.
import assert from "node:assert/strict";
import { connect as tcpConnect } from "node:net";
import { text } from "node:stream/consumers";
import { after, before, describe, it } from "node:test";
import { Client, VERSIONS, nextEvent, prepare, until, within } from "./clients.mjs";
import { FAULTS, Proxy } from "./proxy.mjs";
import { WebSocketLink } from "./raw.mjs";
import { REFERENCE, STOPS_AT_ONCE, startServer, unlikeNode } from "./server.mjs";

const timeout = 60_000;
// Short, so that the server gives up a probe, and pings, while a test looks on.
const SETTINGS = { ...STOPS_AT_ONCE, "session.upgrade_timeout": "500ms", "session.ping_interval": "300ms" };
let server;

before(async () => {
  server = await startServer({ settings: SETTINGS });
});
after(() => server?.stop());

const ECHOES = 30;
const HEARTBEATS = 3;
// A pong in EIO4, and in EIO3 a ping, with which the client begins there.
const HEARTBEAT_BODIES = ["3", "1:2"];

const polls = ({ requests }) => requests.filter(({ method }) => method === "GET").length;
const heartbeats = ({ requests }) => requests.filter(({ body }) => HEARTBEAT_BODIES.includes(body)).length;

/** Every echo arrives, one after the other. */
async function echo(client, count) {
  for (let n = 0; n < count; n++) {
    client.emit("server_message", n);
    await client.expect("server_message", n);
  }
}

/** While nothing is said, a poll is held until a heartbeat is due: it takes one poll each, and one waits. */
async function assertPollsAreHeld(proxy, name) {
  const [pollsBefore, heartbeatsBefore] = [polls(proxy), heartbeats(proxy)];
  await until(() => heartbeats(proxy) >= heartbeatsBefore + HEARTBEATS, `${HEARTBEATS} heartbeats of ${name}`);
  const made = polls(proxy) - pollsBefore;
  assert.ok(made <= HEARTBEATS + 2, `${name}: ${made} polls in ${HEARTBEATS} heartbeats`);
}

describe("a client stays on polling", { concurrency: true }, () => {
  for (const version of VERSIONS) {
    for (const [fault, what] of Object.entries(FAULTS)) {
      it(`v${version}, WebSocket ${what}`, { timeout }, async () => {
        const proxy = await Proxy.start(server.port, fault);
        const client = new Client(prepare(proxy.url, { version, transport: "upgrade" }), `v${version} ${fault}`);
        let connects = 0;
        client.socket.on("connect", () => connects++);
        try {
          const connected = nextEvent(client.socket, "connect", `${client.name} connects`);
          client.socket.connect();
          await connected;
          await echo(client, ECHOES);
          await until(() => proxy.upgrades.some(({ over }) => over), `${client.name}: its probe ends`);
          assert.deepEqual(
            proxy.upgrades.map(({ status }) => status),
            [101],
            "the server's answer to upgrades",
          );
          await echo(client, ECHOES);
          await assertPollsAreHeld(proxy, client.name);
          await echo(client, 1);
          assert.equal(client.transport, "polling");
          const useful = 2 * ECHOES + 1 + heartbeats(proxy);
          assert.ok(polls(proxy) <= useful + 10, `${client.name}: ${polls(proxy)} polls, of use ${useful}`);
          assert.deepEqual([connects, client.disconnects], [1, []], `${client.name}: connects, disconnects`);
        } finally {
          client.close();
          proxy.stop();
        }
      });
    }
  }
});

describe("a proxy that speaks HTTP/1.0 to the server", { concurrency: true }, () => {
  for (const version of VERSIONS) {
    it(`costs v${version} its WebSocket at most`, { timeout }, async () => {
      const proxy = await Proxy.start(server.port, "http10");
      const client = new Client(prepare(proxy.url, { version, transport: "upgrade" }), `v${version} http10`);
      try {
        client.socket.connect();
        await until(() => proxy.upgrades.length && proxy.upgrades[0].status, `${client.name} tries to upgrade`);
        await echo(client, ECHOES);
        // Node's ws takes it, which not every proxy can do anything with.
        if (!REFERENCE) assert.equal(proxy.upgrades[0].status, 400);
        if (!REFERENCE) await assertPollsAreHeld(proxy, client.name);
        assert.deepEqual(client.disconnects, []);
      } finally {
        client.close();
        proxy.stop();
      }
    });
  }

  it("is answered 400 when it asks for a WebSocket", { timeout, skip: unlikeNode }, async () => {
    for (const eio of [3, 4]) {
      const link = await WebSocketLink.open(server.url, `EIO=${eio}&transport=websocket`, { version: "1.0" });
      assert.equal(link.status, 400);
    }
  });

  it("is answered in HTTP/1.0 when it polls", { timeout }, async () => {
    // What nginx sends without `proxy_http_version 1.1`.
    const socket = tcpConnect({ host: "127.0.0.1", port: server.port });
    socket.write("GET /socket.io/?EIO=4&transport=polling HTTP/1.0\r\nHost: backend\r\nConnection: close\r\n\r\n");
    const [head, body] = (await within(text(socket), "the answer")).split("\r\n\r\n");
    assert.match(head, /^HTTP\/1\.[01] 200 /);
    assert.doesNotMatch(head, /transfer-encoding/i);
    assert.match(body, /^0\{.*\}$/);
  });
});
