// How the connections end of a server that is told to stop. Clients for C++ and for Java take a close frame for an
// orderly end, after which they need not come back; an end of the TCP stream without one they take for a lost network.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { VERSIONS, connectAll, nextEvent } from "./clients.mjs";
import { Polling, WebSocketLink } from "./raw.mjs";
import { startServer, unlikeNode } from "./server.mjs";

const timeout = 60_000;
const MESSAGES = 200;
const chat = (...args) => `42${JSON.stringify(["chat_message", ...args])}`;
const settings = { "drain.spread": "500ms" };

/** Sends to everyone, and returns when it is on its way to everyone. */
async function sendAll(sender, packets) {
  sender.send(...packets);
  await sender.expect(...packets);
}

const packets = Array.from({ length: MESSAGES }, (_, n) => chat(n, "x".repeat(200)));

/** Ended by the end of the stream alone, behind all of these. */
async function assertEnded(link, wanted, name) {
  const { fin, error } = await link.closed(`${name} is closed`);
  assert.equal(link.closeCode, undefined, `${name} got a close frame`);
  assert.deepEqual([fin, error], [true, null], `${name}: end of the stream, error`);
  const got = link.unread.filter((packet) => packet !== "2");
  assert.equal(got.length, wanted.length, `${name}: packets before the end; the last: ${got.at(-1)?.slice(0, 80)}`);
  assert.deepEqual(got, wanted, name);
}

describe("a server that stops", { concurrency: true }, () => {
  it("ends WebSockets without a close frame, behind all that was sent", { timeout }, async () => {
    const server = await startServer({ settings });
    let stopped;
    try {
      const links = {};
      for (let n = 0; n < 10; n++) links[`EIO4 ${n}`] = await WebSocketLink.connect(server.url);
      for (let n = 0; n < 10; n++) {
        const link = await WebSocketLink.session(server.url, { query: "EIO=3&transport=websocket" });
        await link.expect("40");
        links[`EIO3 ${n}`] = link;
      }
      for (let n = 0; n < 5; n++) {
        const polling = await Polling.connect(server.url);
        const link = await WebSocketLink.open(server.url, `EIO=4&transport=websocket&sid=${polling.sid}`);
        link.send("2probe", "5", '42["server_message","upgraded"]');
        await link.expect("3probe", '42["server_message","upgraded"]');
        links[`upgraded ${n}`] = link;
      }
      const sender = await WebSocketLink.connect(server.url);
      await sendAll(sender, packets);
      stopped = server.stop();
      await Promise.all(Object.entries(links).map(([name, link]) => assertEnded(link, packets, name)));
      await assertEnded(sender, [], "the sender");
    } finally {
      await (stopped ?? server.stop());
    }
  });

  it("does not reset those that go on sending", { timeout, skip: unlikeNode }, async () => {
    const server = await startServer({ settings });
    let stopped;
    try {
      const links = [];
      for (let n = 0; n < 5; n++) links.push(await WebSocketLink.connect(server.url));
      const sender = await WebSocketLink.connect(server.url);
      await sendAll(sender, packets);
      for (const link of links) {
        // Something in every turn, so that there is always something on its way.
        const more = () => {
          if (!link.socket.writable) return;
          if (!link.socket.writableNeedDrain) link.send('42["no_such_event","x"]', '42["no_such_event","y"]');
          setImmediate(more);
        };
        more();
      }
      stopped = server.stop();
      await Promise.all(links.map((link, n) => assertEnded(link, packets, `sender ${n}`)));
    } finally {
      await (stopped ?? server.stop());
    }
  });

  it("sends those that are behind what waits for them", { timeout, skip: unlikeNode }, async () => {
    const server = await startServer({ settings });
    let stopped;
    try {
      const slow = await WebSocketLink.connect(server.url);
      const sender = await WebSocketLink.connect(server.url);
      slow.socket.pause();
      // More than the kernel takes for somebody who does not read, less than the server keeps for one client.
      const large = Array.from({ length: 30 }, (_, n) => chat(n, "y".repeat(100_000)));
      await sendAll(sender, large);
      stopped = server.stop();
      await sender.closed();
      slow.socket.resume();
      await assertEnded(slow, large, "the slow one");
    } finally {
      await (stopped ?? server.stop());
    }
  });

  it("sends those that poll neither a close nor a DISCONNECT", { timeout }, async () => {
    const server = await startServer({ settings });
    let stopped;
    try {
      const polls = [];
      for (let n = 0; n < 5; n++) {
        const [waiting] = await (await Polling.connect(server.url)).beginPoll();
        polls.push(waiting.catch(() => ({ body: "" }))); // the connection may just end
      }
      stopped = server.stop();
      for (const { body } of await Promise.all(polls)) {
        for (const packet of body.split("\u001e")) assert.doesNotMatch(packet, /^(1|41)/, body);
      }
    } finally {
      await (stopped ?? server.stop());
    }
  });

  it("is taken for a lost connection by the official clients, which come back", { timeout }, async () => {
    const server = await startServer({ settings });
    const voices = VERSIONS.map((version) => ({ name: `v${version} websocket`, version, transport: "websocket" }));
    const options = { reconnection: true, reconnectionDelay: 50, randomizationFactor: 0 };
    const clients = await connectAll(server.url, voices, options);
    try {
      const gone = clients.map(({ socket, name }) => nextEvent(socket, "disconnect", `${name} notices`));
      await server.stop();
      for (const [reason] of await Promise.all(gone)) assert.equal(reason, "transport close");
      const back = clients.map(({ socket, name }) => nextEvent(socket, "connect", `${name} comes back`));
      await server.start();
      await Promise.all(back);
    } finally {
      clients.forEach((client) => client.close());
      await server.stop();
    }
  });
});
