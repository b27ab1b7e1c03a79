// Starts and stops the server under test: the binary named by ANTIPHON_BIN, the same node with a Rust handler in
// every namespace if ANTIPHON_HANDLERS is set, or the Node reference server if ANTIPHON_REFERENCE is set.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer, connect as tcpConnect } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** Set when the server is the Node one: then what only Antiphon does is not asked for. */
export const REFERENCE = process.env.ANTIPHON_REFERENCE ?? "";
/** A reason to skip what only Antiphon does, or false. The acks variant of the reference does it too. */
export const antiphonOnly = REFERENCE && REFERENCE !== "acks" ? "Antiphon only" : false;

/** A reason to skip what Antiphon does otherwise than Node, on purpose, or false. */
export const unlikeNode = REFERENCE ? "otherwise than Node" : false;

const HANDLERS = process.env.ANTIPHON_HANDLERS ?? "";
/** A reason to skip what a node answers only where no application listens, or false. */
export const withoutHandlers = HANDLERS ? "an application listens" : antiphonOnly;

const START_DEADLINE_MS = 15_000;
// A drain may be paced, but a handful of clients must not take longer than this.
const STOP_DEADLINE_MS = 20_000;
const OUTPUT_KEPT_CHARS = 16_000;

const script = (name) => fileURLToPath(new URL(name, import.meta.url));

/** An example program that is a node, too; cargo puts it beside the server. */
export function example(name) {
  return process.env.ANTIPHON_BIN && join(dirname(process.env.ANTIPHON_BIN), "examples", name);
}

function commandLine(port, settings, program) {
  const args = ["--listen", `127.0.0.1:${port}`, ...settings];
  if (program?.endsWith(".mjs")) return [process.execPath, [program, ...args]];
  if (program) return [program, args];
  if (REFERENCE) return [process.execPath, [script("reference.mjs"), ...args]];
  if (!process.env.ANTIPHON_BIN) {
    throw new Error("set ANTIPHON_BIN to the path of the server binary (or ANTIPHON_REFERENCE=1)");
  }
  if (HANDLERS) return [example("handlers"), ["--silent", ...args]];
  return [process.env.ANTIPHON_BIN, args];
}

/**
 * A free port below the range that outgoing connections use: a port from within it could be taken, while
 * the server is down for a restart, by the very client that tries to reach it.
 */
export async function freePort() {
  for (let attempt = 0; attempt < 100; attempt++) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    const probe = createServer();
    const free = await new Promise((resolve) => {
      probe.once("error", () => resolve(false));
      probe.listen(port, "127.0.0.1", () => probe.close(() => resolve(true)));
    });
    if (free) return port;
  }
  throw new Error("no free port between 20000 and 30000");
}

/** Whether somebody listens there: one attempt to open a TCP connection. */
export function listens(port) {
  return new Promise((resolve) => {
    const probe = tcpConnect(port, "127.0.0.1");
    probe.once("error", () => resolve(false));
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
  });
}

export class Server {
  #child = null;
  #output = "";

  /** `settings`: more arguments for its command line; `program`: another one than the server under test. */
  constructor(port, settings = ["--set", "admin.listen="], program = null) {
    this.port = port;
    this.settings = settings;
    this.program = program;
    this.url = `http://127.0.0.1:${port}`;
  }

  async start() {
    const [program, args] = commandLine(this.port, this.settings, this.program);
    const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe"] });
    this.#child = child;
    let failed = null;
    child.once("error", (error) => (failed = error.message));
    child.once("exit", (code, signal) => (failed ??= `exited with ${signal ?? code}`));
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding("utf8");
      stream.on("data", (text) => (this.#output = (this.#output + text).slice(-OUTPUT_KEPT_CHARS)));
    }
    const deadline = Date.now() + START_DEADLINE_MS;
    while (!(await listens(this.port))) {
      if (failed) throw this.#error(`${program} did not start: ${failed}`);
      if (Date.now() > deadline) {
        child.kill("SIGKILL");
        throw this.#error(`${program} did not listen on port ${this.port} within ${START_DEADLINE_MS} ms`);
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    return this;
  }

  /** SIGTERM to our own child; it must end by itself, with code 0, and must not have panicked. */
  async stop() {
    const child = this.#child;
    this.#child = null;
    if (!child) return;
    if (child.exitCode !== null || child.signalCode !== null) {
      throw this.#error(`the server ended by itself with ${child.signalCode ?? child.exitCode}`);
    }
    const ended = once(child, "exit");
    child.kill("SIGTERM");
    const timer = setTimeout(() => child.kill("SIGKILL"), STOP_DEADLINE_MS);
    const [code, signal] = await ended;
    clearTimeout(timer);
    if (code !== 0) {
      throw this.#error(`after SIGTERM the server ended with ${signal ?? `exit code ${code}`}, not 0`);
    }
    if (/panicked at/.test(this.#output)) throw this.#error("the server panicked");
  }

  /** The end of what it has printed, its log among it. */
  get printed() {
    return this.#output;
  }

  /** The sum of a metric's values over all labels that `labels` is found in, such as `reason="too_large"`. */
  async metric(name, labels = "") {
    const text = await (await fetch(`http://127.0.0.1:${this.adminPort}/metrics`)).text();
    const lines = text.split("\n").filter((line) => line.startsWith(name) && line.includes(labels));
    return lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
  }

  kill() {
    this.#child?.kill("SIGKILL");
  }

  /** As when the machine loses power; nothing is left to be stopped. */
  async crash() {
    const child = this.#child;
    this.#child = null;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }

  #error(message) {
    return new Error(`${message}; it printed:\n${this.#output.trim() || "(nothing)"}`);
  }
}

// For when this test process ends early: leaves no server behind.
const servers = new Set();
process.once("exit", () => servers.forEach((server) => server.kill()));

// Rules are read from a file; all those of a test process lie in one folder.
let folder = null;
let files = 0;

/** Writes `[[event]]` rules, such as `{ name: "chat_message", action: "broadcast" }`, and returns the file. */
function eventsFile(events) {
  if (!folder) {
    folder = mkdtempSync(join(tmpdir(), "antiphon-interop-"));
    process.once("exit", () => rmSync(folder, { recursive: true, force: true }));
  }
  const lines = (event) => Object.entries(event).map(([key, value]) => `${key} = ${JSON.stringify(value)}\n`);
  const file = join(folder, `${++files}.toml`);
  writeFileSync(file, events.map((event) => `[[event]]\n${lines(event).join("")}`).join("\n"));
  return file;
}

/** For tests that leave sessions behind: whoever is still there when the server stops is closed at once. */
export const STOPS_AT_ONCE = { "drain.spread": "0s" };

/**
 * Starts a server on a free port. Whoever starts it stops it.
 *
 * `settings`: Antiphon's, by key; `events`: rules in the place of the default ones; `admin`: whether operators can
 * ask for metrics. The Node reference understands the settings that it names itself, and the rules.
 */
export async function startServer({ settings = {}, events = null, admin = false } = {}) {
  const adminPort = admin ? await freePort() : null;
  const all = { "admin.listen": admin ? `127.0.0.1:${adminPort}` : "", ...settings };
  const args = Object.entries(all).flatMap(([key, value]) => ["--set", `${key}=${value}`]);
  if (events) args.push("--config", eventsFile(events));
  return begin(Object.assign(new Server(await freePort(), args), { adminPort }));
}

/** Starts the server that the protocol suites expect. */
export async function startConformance() {
  const program = REFERENCE ? script("conformance.mjs") : example("conformance");
  if (!program) throw new Error("set ANTIPHON_BIN to the path of the server binary (or ANTIPHON_REFERENCE=1)");
  return begin(new Server(await freePort(), [], program));
}

function begin(server) {
  servers.add(server);
  return server.start();
}
