// A cluster for a test: one Redis, two Antiphon nodes `a` and `b`, and a Node.js server `node` with
// @socket.io/redis-adapter.
//
// CLUSTER_REFERENCE=1 puts Node.js servers in the place of `a` and `b`, which do on purpose what Antiphon does
// otherwise than Node (stand-in.mjs): what then passes is what Node does, so a failure of Antiphon is Antiphon's.
import assert from "node:assert/strict";
import { fork, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { io as io4 } from "client4";
import { createClient } from "redis";
import { assertArgs, normalise, until, within } from "./clients.mjs";
import { REFERENCE, Server, freePort, listens } from "./server.mjs";

export { until };

export const STAND_INS = Boolean(process.env.CLUSTER_REFERENCE);
/** A reason to skip a cluster, or false: where there is no Antiphon, and nobody asked for its stand-ins. */
export const noCluster = REFERENCE && !STAND_INS ? "about Antiphon nodes" : false;

// Longer than the 5 s after which Node gives up on a server that does not answer, and says so.
const CALL_MS = 8_000;

/** Ends a child process that may have ended, or never begun. */
async function end(child) {
  if (!child || child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, "exit");
  if (child.kill("SIGKILL")) await ended;
}

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

  /** A client of it; whoever opens it closes it with `disconnect()`. */
  async client() {
    const client = createClient({ url: this.url });
    client.on("error", () => {}); // it reconnects by itself
    return client.connect();
  }

  stop() {
    return end(this.child);
  }

  kill() {
    this.child?.kill("SIGKILL");
  }

  async remove() {
    await this.stop();
    if (this.folder) await rm(this.folder, { recursive: true, force: true });
  }
}

/** A Node.js server of the cluster, in a process of its own (cluster-peer.mjs). */
class Peer {
  #number = 0;
  #waiting = new Map();

  /** `options`: of cluster-peer.mjs. */
  async start(redis, options = {}) {
    const port = await freePort();
    this.url = `http://127.0.0.1:${port}`;
    const program = fileURLToPath(new URL("cluster-peer.mjs", import.meta.url));
    this.child = fork(program, [port, redis.url, JSON.stringify(options)], { serialization: "advanced" });
    await within(once(this.child, "message"), "the Node.js server listens");
    this.child.on("message", ({ number, outcomes }) => {
      this.#waiting.get(number)(outcomes);
      this.#waiting.delete(number);
    });
    return this;
  }

  /**
   * Runs several calls in one turn of its event loop, as `[[["to", "room"], ["emit", "event"]]]` for
   * `io.to("room").emit("event")`, and gives what became of each: `{ value }`, or `{ error, responses }`.
   */
  all(...calls) {
    const number = this.#number++;
    const outcomes = new Promise((resolve) => this.#waiting.set(number, resolve));
    this.child.send({ number, calls });
    return within(outcomes, `the Node.js server runs ${JSON.stringify(calls)}`, CALL_MS);
  }

  /** Runs one call, and gives its value. */
  async call(...steps) {
    const [{ value, error, responses }] = await this.all(steps);
    if (error) throw Object.assign(new Error(error), { responses });
    return value;
  }

  ready() {
    return true;
  }

  kill() {
    this.child?.kill("SIGKILL");
  }

  stop() {
    return end(this.child);
  }

  crash() {
    return end(this.child);
  }
}

/** An Antiphon node of the cluster. */
class AntiphonNode {
  async start(redis, name, rules, program) {
    const admin = await freePort();
    const settings = { "redis.url": redis.url, "node.id": name, "admin.listen": `127.0.0.1:${admin}` };
    const args = Object.entries(settings).flatMap(([key, value]) => ["--set", `${key}=${value}`]);
    this.admin = `http://127.0.0.1:${admin}`;
    this.server = new Server(await freePort(), ["--config", rules, ...args], program);
    this.url = this.server.url;
    await this.server.start();
    return this;
  }

  /** What it tells a balancer. */
  async readyz() {
    return (await fetch(`${this.admin}/readyz`)).json();
  }

  async ready() {
    return (await this.readyz()).ready;
  }

  kill() {
    this.server?.kill();
  }

  async stop() {
    if (!this.crashed) await this.server?.stop();
  }

  async crash() {
    this.crashed = true;
    await this.server.crash();
  }
}

export class Cluster {
  #servers = [];

  /**
   * `rules`: the configuration of `a` and `b`; `adapter`: the same for their stand-ins, as options of
   * @socket.io/redis-adapter; `program`: what `a` is, if not the server under test.
   */
  async start({ rules, adapter = {}, program = null }) {
    // For when this test process ends early: leaves nothing behind.
    for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1));
    process.once("exit", () => [...this.#servers, this.redis].forEach((one) => one?.kill()));
    this.redis = new Redis();
    await this.redis.start();
    this.folder = await mkdtemp(join(tmpdir(), "antiphon-rules-"));
    const file = join(this.folder, "rules.toml");
    await writeFile(file, rules);
    const antiphon = (name, program) =>
      STAND_INS ? this.peer({ standIn: true, adapter }) : this.#begin(new AntiphonNode(), name, file, program);
    this.a = await antiphon("a", program);
    this.b = await antiphon("b");
    for (const node of [this.a, this.b]) await until(() => node.ready(), "the node is ready");
    this.node = await this.peer({});
    this.client = await this.redis.client();
  }

  /** One more Node.js server; `options`: of cluster-peer.mjs. */
  peer(options) {
    return this.#begin(new Peer(), options);
  }

  #begin(server, ...options) {
    this.#servers.push(server); // it must be stopped even if it does not start
    return server.start(this.redis, ...options);
  }

  /** Also after a start that went wrong half way. */
  async stop() {
    await this.client?.disconnect();
    const ends = [];
    for (const server of this.#servers) ends.push(await server.stop().catch((error) => error));
    await this.redis?.remove();
    if (this.folder) await rm(this.folder, { recursive: true, force: true });
    for (const error of ends.filter(Boolean)) throw error;
  }
}

/** A client closes its connection when its last namespace ends, which would hide that a server does not. */
export function leaveClosingToTheServer({ io: manager }) {
  manager.destroy = manager._destroy = () => {}; // the former in version 2
  manager.reconnection(false);
}

/** Whether there is a connection. */
export const isLinked = ({ io: manager }) => manager.engine.readyState === "open";

/** A client that keeps everything that arrives, in order. */
export class Listener {
  #queue = [];
  #waiting = null;

  constructor(socket, name) {
    this.name = name;
    this.disconnects = [];
    this.acknowledges = () => [name];
    this.socket = socket;
    socket.onAny((...event) => {
      if (typeof event.at(-1) === "function") {
        const acknowledge = event.pop();
        if (this.acknowledges) acknowledge(...this.acknowledges());
      }
      const waiting = this.#waiting;
      this.#waiting = null;
      if (waiting) waiting(normalise(event));
      else this.#queue.push(normalise(event));
    });
    socket.on("disconnect", (reason) => this.disconnects.push(reason));
  }

  static open(url, name, options) {
    return new Listener(io4(url, { transports: ["websocket"], forceNew: true, ...options }), name);
  }

  /** The same client in another namespace, over the same connection. */
  also(namespace, options) {
    return new Listener(this.socket.io.socket(namespace, options), `${this.name} in ${namespace}`);
  }

  get id() {
    return this.socket.id;
  }

  connected() {
    return within(
      this.socket.connected ? Promise.resolve() : new Promise((done) => this.socket.once("connect", done)),
      `${this.name} connects`,
    );
  }

  async next(what) {
    if (this.#queue.length) return this.#queue.shift();
    const arrival = new Promise((done) => (this.#waiting = done));
    return within(arrival, `${this.name} waits for ${what}`).finally(() => (this.#waiting = null));
  }

  async expect(...event) {
    assertArgs(await this.next(event[0]), normalise(event), this.name);
  }

  /** Passes over what comes before this event. */
  async skipTo(...event) {
    const wanted = JSON.stringify(event);
    while (JSON.stringify(await this.next(event[0])) !== wanted);
  }

  ask(...event) {
    return within(new Promise((done) => this.socket.emit(...event, done)), `${this.name} waits for an ack`);
  }

  /** Closes the connection, and keeps it closed. */
  close() {
    this.socket.io._close();
  }

  /** A server has disconnected it, for this reason and no other. */
  async left(reason) {
    await until(() => this.disconnects.length > 0, `${this.name} is disconnected`);
    assert.deepEqual(this.disconnects.splice(0), [reason], this.name);
  }
}
