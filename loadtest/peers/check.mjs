// Whether the peers do what they are compared in, as the official client sees it.
//
//   node check.mjs [NAME…]     all if none is named; a peer that is not installed fails only if it is named
//
// Needs the clients of the interop tests (crates/gateway/tests/interop/install), and redis-server for those
// that can be a cluster.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const interop = new URL("../../crates/gateway/tests/interop/", import.meta.url);
const { io } = createRequire(interop)("client4");
const start = fileURLToPath(new URL("start", import.meta.url));

const PEERS = {
  floor: ["chat", "slow"],
  socketioxide: ["chat", "echo", "rooms", "cluster"],
  "node-ws": ["chat", "echo", "rooms", "cluster"],
  "node-uws": ["chat", "echo", "rooms"],
  bun: ["chat", "echo", "rooms"],
};
const DEADLINE_MS = 10_000;
const NOT_INSTALLED = 69;
/** No test's own message. */
const HELLO = "hello";

const children = new Set();
const clients = new Set();

function run(command, args) {
  const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] });
  children.add(child);
  child.said = "";
  child.stderr.on("data", (text) => (child.said += text));
  child.ended = once(child, "exit").finally(() => children.delete(child));
  return child;
}

/** The first line of output that matches. */
async function line(child, pattern) {
  const lines = createInterface({ input: child.stdout });
  const found = (async () => {
    for await (const text of lines) if (pattern.test(text)) return text.match(pattern);
    const [code, signal] = await child.ended;
    throw Object.assign(new Error(child.said.trim() || `ended: ${code ?? signal}`), { code });
  })();
  const match = await within(found, () => "the server does not say that it listens");
  child.stdout.resume();
  return match;
}

async function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`after ${DEADLINE_MS} ms: ${what()}`)), DEADLINE_MS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

async function serve(name, ...args) {
  const child = run(start, [name, "--port", "0", ...args]);
  const [, port] = await line(child, /^listening (\d+)$/);
  return { name, child, url: `http://127.0.0.1:${port}` };
}

async function connect({ url, name }) {
  const client = io(url, { transports: ["websocket"], forceNew: true, reconnection: false });
  clients.add(client);
  client.got = [];
  client.onAny((...event) => event[1] === HELLO || client.got.push(event));
  await within(
    new Promise((resolve, reject) => client.once("connect", resolve).once("connect_error", reject)),
    () => "a client does not connect",
  );
  if (name === "socketioxide") await within(handled(client), () => "no handler answers");
  return client;
}

/**
 * Until the server has handlers for the client. Those of socketioxide come from a task of its own, behind the
 * answer that the client is connected: what it sends at once may find none, and is gone.
 */
async function handled(client) {
  const answer = new Promise((resolve) => client.once("server_message", resolve));
  const asking = setInterval(() => client.emit("server_message", HELLO), 20);
  await answer;
  clearInterval(asking);
}

/** Waits until the client has got that many events, and says which. */
async function got(client, count) {
  const enough = (async () => {
    while (client.got.length < count) await new Promise((resolve) => client.onAny(resolve));
  })();
  await within(enough, () => `${count} events awaited, got ${JSON.stringify(client.got)}`);
  return client.got.splice(0);
}

/** A message to everyone arrives everywhere, once, after all that was meant for anyone before. */
async function settle(members) {
  members[0].emit("chat_message", "settled");
  return Promise.all(members.map((member) => got(member, 1)));
}
const SETTLED = [["chat_message", "settled"]];

const checks = {
  async chat(name) {
    const server = await serve(name);
    const members = await Promise.all([connect(server), connect(server), connect(server)]);
    // Of every length that WebSocket writes in its own way, and with what JSON escapes.
    const texts = ["", "x".repeat(128), "ä\"\\\n💬", "y".repeat(70_000)];
    for (const text of texts) {
      members[0].emit("chat_message", text);
      for (const member of members) assert.deepEqual(await got(member, 1), [["chat_message", text]]);
    }
    // In one burst. socketioxide keeps 128 packets for a client, and drops what comes beyond.
    for (let number = 0; number < 100; number += 1) members[1].emit("chat_message", number);
    for (const member of members) {
      const numbers = (await got(member, 100)).map(([, number]) => number);
      // Its handlers run on tasks of their own: all messages arrive, in any order.
      if (name === "socketioxide") numbers.sort((a, b) => a - b);
      assert.deepEqual(numbers, [...Array(100).keys()]);
    }
    server.child.kill("SIGTERM");
    await within(server.child.ended, () => "the server does not end on SIGTERM");
  },

  /** A client that stops reading for a while misses nothing, and nobody waits for it. */
  async slow(name) {
    const server = await serve(name);
    const [sender, slow] = await Promise.all([connect(server), connect(server)]);
    const { _socket: stream } = slow.io.engine.transport.ws;
    stream.pause();
    // More than the kernel takes for a client that does not read.
    const texts = Array.from({ length: 200 }, (_, number) => `${number} ${"z".repeat(70_000)}`);
    for (const text of texts) sender.emit("chat_message", text);
    const expected = texts.map((text) => ["chat_message", text]);
    assert.deepEqual(await got(sender, texts.length), expected);
    assert.ok(slow.got.length < texts.length, "the slow client was not slow");
    stream.resume();
    assert.deepEqual(await got(slow, texts.length), expected);
    server.child.kill();
  },

  async echo(name) {
    const server = await serve(name);
    const [sender, other] = await Promise.all([connect(server), connect(server)]);
    sender.emit("server_message", "to myself");
    assert.deepEqual(await got(sender, 1), [["server_message", "to myself"]]);
    assert.deepEqual(await settle([sender, other]), [SETTLED, SETTLED]);
    server.child.kill();
  },

  async rooms(name) {
    const server = await serve(name);
    await rooms(await Promise.all([connect(server), connect(server), connect(server)]));
    server.child.kill();
  },

  async cluster(name) {
    // Its choice of port is reported nowhere; one that was free a moment ago will do.
    const probe = createServer().listen(0, "127.0.0.1");
    await once(probe, "listening");
    const { port } = probe.address();
    await new Promise((resolve) => probe.close(resolve));
    const settings = ["--save", "", "--bind", "127.0.0.1", "--port", port];
    const redis = run("redis-server", settings.map(String));
    await line(redis, /Ready to accept connections/);
    const nodes = [];
    for (let node = 0; node < 2; node += 1) nodes.push(await serve(name, "--redis", `redis://127.0.0.1:${port}`));
    await rooms(await Promise.all([connect(nodes[0]), connect(nodes[1]), connect(nodes[0])]));
    for (const { child } of nodes) child.kill();
    redis.kill();
  },
};

async function rooms([sender, inside, outside]) {
  for (const member of [sender, inside]) {
    member.emit("join", "den");
    // Joined once what was sent behind it is back; a peer that takes up events side by side gets each alone.
    assert.deepEqual(await roundTrip(member, [sender, inside, outside]), true);
  }
  sender.emit("room_message", "den", "to the den");
  assert.deepEqual(await got(sender, 1), [["room_message", "to the den"]]);
  assert.deepEqual(await got(inside, 1), [["room_message", "to the den"]]);
  assert.deepEqual(await settle([sender, inside, outside]), [SETTLED, SETTLED, SETTLED]);
}

async function roundTrip(from, everyone) {
  from.emit("chat_message", "joined");
  const heard = await Promise.all(everyone.map((member) => got(member, 1)));
  return heard.every(([[event, text]]) => event === "chat_message" && text === "joined");
}

async function endEverything() {
  for (const client of clients) client.disconnect();
  clients.clear();
  for (const child of children) child.kill("SIGKILL");
  await Promise.all([...children].map((child) => child.ended));
}

const named = process.argv.slice(2);
const unknown = named.filter((name) => !(name in PEERS));
if (unknown.length) throw new Error(`no peer ${unknown.join(", ")}; there are ${Object.keys(PEERS).join(", ")}`);
let failures = 0;
for (const name of named.length ? named : Object.keys(PEERS)) {
  for (const check of PEERS[name]) {
    try {
      await checks[check](name);
      console.log(`ok       ${name}: ${check}`);
    } catch (error) {
      const missing = error.code === NOT_INSTALLED;
      if (!missing || named.length) failures += 1;
      console.log(missing ? `MISSING  ${name}: ${error.message}` : `FAILED   ${name}: ${check}: ${error.message}`);
      if (missing) break;
    } finally {
      await endEverything();
    }
  }
}
process.exit(failures ? 1 : 0);
