// A mixed cluster: two Antiphon nodes and a Node.js server with @socket.io/redis-adapter share one Redis.
// Whoever sends, on whichever server, everybody meant gets it: once, with its arguments, in order.
import assert from "node:assert/strict";
import { fork, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { fileURLToPath } from "node:url";
import { Emitter } from "@socket.io/redis-emitter";
import { io as io4 } from "client4";
import { createClient } from "redis";
import { assertArgs, normalise, within } from "./clients.mjs";
import { REFERENCE, Server, freePort, listens } from "./server.mjs";

const timeout = 60_000;
const RULES = `
[[event]]
name = "chat_message"
action = "broadcast"

[[event]]
name = "to_others"
action = "broadcast"
to = "others"

[[event]]
name = "join"
action = "join"

[[event]]
name = "say"
action = "room"
`;

/** A Redis of our own: on a free port, in a folder of its own, with nothing kept. */
class Redis {
  async start() {
    this.port ??= await freePort();
    this.url = `redis://127.0.0.1:${this.port}`;
    this.folder ??= await mkdtemp(join(tmpdir(), "antiphon-redis-"));
    const args = ["--port", this.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", this.folder];
    this.child = spawn("redis-server", args.map(String), { stdio: "ignore" });
    let failed = null;
    this.child.once("error", (error) => (failed = `redis-server: ${error.message}`));
    await until(() => failed ?? listens(this.port), "Redis listens");
    if (failed) throw new Error(failed);
    return this;
  }

  async stop() {
    const ended = once(this.child, "exit");
    this.child.kill("SIGKILL");
    await ended;
  }

  async remove() {
    await this.stop();
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** Waits for a condition; asking it again and again is the only way to know. */
async function until(condition, what) {
  const deadline = Date.now() + 15_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`${what}: not within 15 s`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A client that keeps everything that arrives, in order. */
class Listener {
  constructor(url, name) {
    this.name = name;
    this.queue = [];
    this.waiting = null;
    this.disconnects = [];
    this.socket = io4(url, { transports: ["websocket"], forceNew: true });
    this.socket.onAny((...event) => {
      const waiting = this.waiting;
      this.waiting = null;
      if (waiting) waiting(normalise(event));
      else this.queue.push(normalise(event));
    });
    this.socket.on("disconnect", (reason) => this.disconnects.push(reason));
  }

  connected() {
    return within(
      this.socket.connected ? Promise.resolve() : new Promise((done) => this.socket.once("connect", done)),
      `${this.name} connects`,
    );
  }

  async expect(...event) {
    const next = this.queue.length ? this.queue.shift() : await within(new Promise((done) => (this.waiting = done)), `${this.name} waits for ${event[0]}`);
    assertArgs(next, normalise(event), this.name);
  }

  ask(...event) {
    return within(new Promise((done) => this.socket.emit(...event, done)), `${this.name} waits for an ack`);
  }
}

const readyz = async (url) => (await fetch(`${url}/readyz`)).json();

let redis, rules, nodes, peer, publisher, emitter, people;

const everyone = () => Object.values(people ?? {}).flat();

/** Everybody but `missing` gets this next, and nobody anything else before it. */
const all = (event, missing = []) =>
  Promise.all(everyone().filter((one) => !missing.includes(one)).map((one) => one.expect(...event)));

/** Runs io.<calls> on the Node.js server. */
const onNode = (...call) => peer.send({ call });
const bytes = (buffer) => ({ $bytes: buffer.toString("base64") });

const PAYLOADS = {
  text: ["hello"],
  "several arguments": ["one", 2, { three: [null, true, 1.5, -7, 4294967296] }],
  "no argument": [],
  unicode: ["\u{1f600} \u4e2d\u6587 \u00e9 \u2028", { "cl\u00e9": "\u{1f680}" }],
  "keys in no order": [{ z: 1, a: { y: 2, b: 3 } }],
  binary: [{ file: Buffer.from([0, 1, 254, 255]), list: ["x", Buffer.from("second")] }],
  "64 kB": ["x".repeat(65_536)],
};

describe("a mixed cluster", { timeout, skip: REFERENCE ? "about Antiphon nodes" : false }, () => {
  before(async () => {
    redis = await new Redis().start();
    rules = await mkdtemp(join(tmpdir(), "antiphon-rules-"));
    await writeFile(join(rules, "rules.toml"), RULES);
    nodes = [];
    for (const name of ["a", "b"]) {
      const admin = await freePort();
      const args = ["--config", join(rules, "rules.toml"), "--set", `redis.url=${redis.url}`, "--set", `node.id=${name}`];
      const server = new Server(await freePort(), [...args, "--admin-listen", `127.0.0.1:${admin}`]);
      await server.start();
      nodes.push({ server, admin: `http://127.0.0.1:${admin}` });
    }
    for (const node of nodes) await until(async () => (await readyz(node.admin)).ready, "the node is ready");
    const port = await freePort();
    peer = fork(fileURLToPath(new URL("cluster-peer.mjs", import.meta.url)), [port, redis.url]);
    peer.url = `http://127.0.0.1:${port}`;
    await within(once(peer, "message"), "the Node.js server listens");
    publisher = createClient({ url: redis.url });
    publisher.on("error", () => {});
    await publisher.connect();
    emitter = new Emitter(publisher);
    people = {};
    for (const [name, url] of [["a", nodes[0].server.url], ["b", nodes[1].server.url], ["node", peer.url]]) {
      people[name] = [new Listener(url, `${name} 1`), new Listener(url, `${name} 2`)];
      await Promise.all(people[name].map((one) => one.connected()));
    }
  });

  after(async () => {
    for (const one of everyone()) one.socket.disconnect();
    await publisher?.disconnect();
    peer?.kill("SIGKILL");
    for (const node of nodes ?? []) await node.server.stop();
    await redis?.remove();
    await rm(rules, { recursive: true, force: true });
  });

  for (const from of ["a", "b", "node"]) {
    for (const [what, args] of Object.entries(PAYLOADS)) {
      it(`chat_message with ${what} from a client of ${from} reaches everyone once`, { timeout }, async () => {
        people[from][0].socket.emit("chat_message", ...args);
        await all(["chat_message", ...args]);
      });
    }

    it(`to_others from a client of ${from} spares its sender`, { timeout }, async () => {
      const sender = people[from][0];
      sender.socket.emit("to_others", from);
      await all(["to_others", from], [sender]);
      sender.socket.emit("chat_message", "after");
      await all(["chat_message", "after"]);
    });

    it(`a room has members everywhere; say from ${from}`, { timeout }, async () => {
      const room = `room of ${from}`;
      const members = [people.a[0], people.b[0], people.node[0]];
      for (const member of members) assert.deepEqual(await member.ask("join", room), { ok: true });
      people[from][1].socket.emit("say", room, "members", 1);
      await Promise.all(members.map((member) => member.expect("say", "members", 1)));
      people[from][1].socket.emit("chat_message", "after");
      await all(["chat_message", "after"]);
    });

    it(`300 messages from ${from} keep their order everywhere`, { timeout }, async () => {
      for (let number = 0; number < 300; number++) people[from][0].socket.emit("chat_message", from, number);
      for (let number = 0; number < 300; number++) await all(["chat_message", from, number]);
    });
  }

  it("Node's io.emit, to, several rooms, except and volatile reach Antiphon's clients", { timeout }, async () => {
    const [a, b, node] = [people.a[0], people.b[0], people.node[0]];
    for (const member of [a, b]) await member.ask("join", "red");
    for (const member of [b, node]) await member.ask("join", "blue");
    onNode(["emit", "chat_message", "io.emit", { bytes: bytes(Buffer.from([9])) }]);
    await all(["chat_message", "io.emit", { bytes: Buffer.from([9]) }]);
    onNode(["to", "red"], ["emit", "say", "red"]);
    await Promise.all([a, b].map((one) => one.expect("say", "red")));
    onNode(["to", ["red", "blue"]], ["emit", "say", "both, once"]);
    await Promise.all([a, b, node].map((one) => one.expect("say", "both, once")));
    onNode(["to", ["red", "blue"]], ["except", "blue"], ["emit", "say", "red alone"]);
    await a.expect("say", "red alone");
    onNode(["except", "red"], ["emit", "chat_message", "not red"]);
    await all(["chat_message", "not red"], [a, b]);
    onNode(["volatile"], ["emit", "chat_message", "volatile"]);
    await all(["chat_message", "volatile"]);
    onNode(["to", a.socket.id], ["emit", "say", "to one"]);
    await a.expect("say", "to one");
    onNode(["except", b.socket.id], ["emit", "chat_message", "not to one"]);
    await all(["chat_message", "not to one"], [b]);
  });

  it("the emitter reaches everyone, rooms and single sockets", { timeout }, async () => {
    const a = people.a[0];
    emitter.emit("chat_message", "emitter", { bytes: Buffer.from([1, 2]) });
    await all(["chat_message", "emitter", { bytes: Buffer.from([1, 2]) }]);
    emitter.to("red").except("blue").emit("say", "by the emitter");
    await a.expect("say", "by the emitter");
    emitter.to(a.socket.id).emit("say", "to one");
    await a.expect("say", "to one");
    emitter.volatile.emit("chat_message", "volatile");
    await all(["chat_message", "volatile"]);
  });

  it("goes on without Redis, says so, and comes back by itself", { timeout }, async () => {
    const [a, b] = nodes;
    await redis.stop();
    await until(async () => !(await readyz(a.admin)).conditions.bus, "the node notices");
    const answer = await people.a[0].ask("chat_message", "alone");
    assert.deepEqual(answer, { ok: true, scope: "local" });
    await Promise.all(people.a.map((one) => one.expect("chat_message", "alone")));
    await redis.start();
    for (const node of [a, b]) await until(async () => (await readyz(node.admin)).conditions.bus, "the node is back");
    assert.deepEqual(await people.a[0].ask("chat_message", "together"), { ok: true });
    await Promise.all([...people.a, ...people.b].map((one) => one.expect("chat_message", "together")));
    for (const one of [...people.a, ...people.b]) assert.deepEqual(one.disconnects, [], `${one.name} stayed`);
  });
});
