// The official JavaScript clients, three generations of them, behind one small face: what they
// name or encode differently is evened out here, so that the tests can compare exactly.
import assert from "node:assert/strict";
import { inspect } from "node:util";
import io2 from "client2";
import { io as io3 } from "client3";
import { io as io4 } from "client4";

export const IO = { 2: io2, 3: io3, 4: io4 };
export const VERSIONS = [2, 3, 4]; // 2 speaks EIO3, 3 and 4 speak EIO4
export const TRANSPORTS = {
  websocket: ["websocket"],
  upgrade: ["polling", "websocket"],
  polling: ["polling"],
};

/** Every version over every transport: `{ name, version, transport }`. */
export const VOICES = VERSIONS.flatMap((version) =>
  Object.keys(TRANSPORTS).map((transport) => ({ name: `v${version} ${transport}`, version, transport })),
);

// How long anything that should happen may take on a slow machine. Nothing waits this long when it works.
export const DEADLINE_MS = Number(process.env.INTEROP_DEADLINE_MS ?? 10_000);
// A client waits up to 1.5 s before its first attempt to reconnect, 3 s before its second, 5 s before later ones.
export const RECONNECT_DEADLINE_MS = 20_000;

// For what may take several steps: a server to start, Redis to come back.
const UNTIL_MS = 1.5 * DEADLINE_MS;

// A server that answers nothing would cost a deadline in each of hundreds of tests.
const PATIENCE_MS = 24 * DEADLINE_MS;

/** `promise`, or an error that says what was waited for. */
export function within(promise, what, ms = DEADLINE_MS) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: nothing within ${ms} ms`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Waits for a condition; asking it again and again is the only way to know. */
export async function until(condition, what) {
  const deadline = Date.now() + UNTIL_MS;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`${what}: not within ${UNTIL_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** The next `event` of an emitter, within the deadline. */
export function nextEvent(emitter, event, what, ms) {
  return within(new Promise((resolve) => emitter.once(event, (...args) => resolve(args))), what, ms);
}

/**
 * Binary arrives as Buffer, Uint8Array or ArrayBuffer, according to version and transport: all are the
 * same bytes. Everything else stays what it is; in particular `{"type":"Buffer","data":[…]}` does not pass.
 */
export function normalise(value) {
  if (value instanceof ArrayBuffer) return Buffer.from(value);
  if (ArrayBuffer.isView(value)) return Buffer.from(value.buffer, value.byteOffset, value.byteLength);
  if (Array.isArray(value)) return value.map(normalise);
  if (value !== null && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, normalise(inner)]));
  }
  return value;
}

const show = (value) => inspect(value, { depth: 6, maxStringLength: 60, maxArrayLength: 12, breakLength: Infinity });

/** Same values, and objects with their keys in the same order: the text that goes out is the text that came in. */
export function assertArgs(got, want, who) {
  const differs = `${who}: expected ${show(want)}, got ${show(got)}`;
  try {
    assert.deepStrictEqual(got, want);
  } catch {
    assert.fail(differs); // its own message would print 900 kB
  }
  assert.ok(JSON.stringify(got) === JSON.stringify(want), `${differs} (other order of keys)`);
}

export class Client {
  #queue = [];
  #waiting = null;

  /** `events`: the names that it listens to; version 2 cannot listen to all. */
  constructor(socket, name, events = ["chat_message", "server_message", "error"]) {
    this.socket = socket;
    this.name = name;
    this.disconnects = []; // reasons, in order
    for (const event of events) {
      socket.on(event, (...args) => {
        // Version 2 reports its own transport's errors under a name that a server can send, too.
        if (event === "error" && args[0] instanceof Error) return;
        this.#arrived({ event, args: normalise(args) });
      });
    }
    socket.on("disconnect", (reason) => {
      this.disconnects.push(reason);
      this.#waiting?.reject(new Error(`${this.name}: disconnected (${reason}) while it waited for an event`));
    });
  }

  #arrived(message) {
    const waiting = this.#waiting;
    this.#waiting = null; // at once: several packets of one payload arrive in the same turn
    if (waiting) waiting.resolve(message);
    else this.#queue.push(message);
  }

  /** The next event, whichever it is: nothing that arrives is skipped. */
  async next(what = "an event") {
    if (this.#queue.length) return this.#queue.shift();
    const arrival = new Promise((resolve, reject) => (this.#waiting = { resolve, reject }));
    return within(arrival, `${this.name} waits for ${what}`).finally(() => (this.#waiting = null));
  }

  /** The next event must be this one, with exactly these arguments. */
  async expect(event, ...args) {
    const got = await this.next(`${event} ${show(args)}`);
    assert.ok(got.event === event, `${this.name}: expected ${event} ${show(args)}, got ${got.event} ${show(got.args)}`);
    assertArgs(got.args, normalise(args), `${this.name}, ${event}`);
  }

  emit(event, ...args) {
    this.socket.emit(event, ...args);
  }

  /** Emits and returns the arguments of the acknowledgement. */
  ask(event, ...args) {
    const answer = new Promise((resolve) => this.socket.emit(event, ...args, (...answer) => resolve(normalise(answer))));
    return within(answer, `${this.name} waits for the ack of ${event}`);
  }

  /** Leaves, and waits until the connection is closed: versions 2 and 3 trip over themselves when opened before. */
  async leave() {
    const { engine } = this.socket.io;
    this.socket.disconnect();
    if (engine.readyState !== "closed") await nextEvent(engine, "close", `${this.name} closes its connection`);
  }

  get transport() {
    return this.socket.io.engine.transport.name;
  }

  close() {
    this.socket.disconnect();
    this.socket.io.engine?.close(); // a client that never got its namespace still has a connection
  }
}

/** A socket that has not been opened, with the same options for every version. */
export function prepare(url, { version, transport }, options = {}) {
  return IO[version](url, {
    transports: TRANSPORTS[transport],
    autoConnect: false,
    forceNew: true, // the clients share connections by URL; the tests must not
    reconnection: false,
    ...options,
  });
}

/** Opens a client; where an upgrade is due it has happened when this returns. `events`: as of `Client`. */
export async function connect(url, voice, options, events) {
  const client = new Client(prepare(url, voice, options), voice.name, events);
  const { socket } = client;
  const refused = new Promise((_, reject) => {
    socket.once("connect_error", (error) => reject(new Error(`${voice.name} cannot connect: ${error.message}`)));
  });
  const connected = nextEvent(socket, "connect", `${voice.name} connects`);
  socket.connect();
  const upgraded =
    voice.transport === "upgrade" && nextEvent(socket.io.engine, "upgrade", `${voice.name} upgrades to WebSocket`);
  try {
    await Promise.race([Promise.all([connected, upgraded]), refused]);
    assert.equal(client.transport, voice.transport === "polling" ? "polling" : "websocket", `${voice.name}: transport`);
  } catch (error) {
    client.close();
    throw error;
  }
  return client;
}

/** One client for each voice; if one cannot connect, none stays. */
export async function connectAll(url, voices, options, events) {
  const results = await Promise.allSettled(voices.map((voice) => connect(url, voice, options, events)));
  const clients = results.filter(({ value }) => value).map(({ value }) => value);
  const wrong = results.filter(({ reason }) => reason).map(({ reason }) => reason.message);
  if (wrong.length) clients.forEach((client) => client.close());
  assert.ok(wrong.length === 0, wrong.join("\n"));
  return clients;
}

/** Runs `check` for every client at once and reports all that went wrong, not just the first. */
export async function everyone(clients, check) {
  const results = await Promise.allSettled(clients.map((client) => check(client)));
  const wrong = results.filter((result) => result.status === "rejected").map((result) => result.reason.message);
  assert.ok(wrong.length === 0, `${wrong.length} of ${clients.length} clients:\n  ${wrong.join("\n  ")}`);
}

/**
 * One client for every voice, all connected to one server. A test takes it with `ready()`; when one has
 * failed, its clients may hold leftovers, so the next test gets new ones.
 */
export class Choir {
  #clients = null;
  #spentOnFailuresMs = 0;

  constructor(url) {
    this.url = url;
  }

  async ready() {
    this.#clients ??= await connectAll(this.url, VOICES);
    return this.#clients;
  }

  /** `body(sender, all)` with the client of that voice as sender. */
  async with(voice, body) {
    const started = Date.now();
    const spent = this.#spentOnFailuresMs;
    assert.ok(spent < PATIENCE_MS, `given up: the tests that failed before this one took ${spent} ms`);
    try {
      const all = await this.ready();
      await body(all[VOICES.indexOf(voice)], all);
    } catch (error) {
      this.#spentOnFailuresMs += Date.now() - started;
      this.close();
      throw error;
    }
  }

  close() {
    this.#clients?.forEach((client) => client.close());
    this.#clients = null;
  }
}
