// The Node server that Antiphon replaces, for checking the suite itself:
// what passes here is what Node does, so a failure of Antiphon is Antiphon's.
//
//   node reference.mjs --listen 127.0.0.1:PORT [--set KEY=VALUE]… [--config FILE]
//
// It takes the arguments of Antiphon. Of the settings it knows those below, of a file its [[event]]s with the actions
// "broadcast" and "echo"; what it does not know it ignores.
//
// ANTIPHON_REFERENCE=acks  answers acknowledgements as Antiphon does, which the
//                          original server never did.
// REFERENCE_BREAK=<fault>  behaves wrongly on purpose; see `selfcheck`.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { Server } from "socket.io";

const acks = process.env.ANTIPHON_REFERENCE === "acks";
const fault = process.env.REFERENCE_BREAK ?? "";

const settings = new Map();
let events = [
  { name: "chat_message", action: "broadcast" },
  { name: "server_message", action: "echo" },
];
for (let at = 2; at + 1 < process.argv.length; at += 2) {
  const [option, value] = process.argv.slice(at, at + 2);
  if (option === "--listen") settings.set("server.listen", value);
  if (option === "--set") settings.set(...value.split(/=(.*)/s, 2));
  if (option === "--config") events = parseEvents(readFileSync(value, "utf8"));
}

/** The rules in a file as `startServer` writes it: what follows a `=` is JSON. */
function parseEvents(toml) {
  const tables = toml.split("[[event]]\n").slice(1);
  const entries = (table) => table.trim().split("\n").map((line) => line.split(/ = (.*)/, 2));
  return tables.map((table) => Object.fromEntries(entries(table).map(([key, value]) => [key, JSON.parse(value)])));
}

/** A duration in milliseconds, "300ms" or "20s"; undefined, which is Node's default, if it is not set. */
function duration(key) {
  const [, number, unit] = /^(\d+)(ms|s)$/.exec(settings.get(key)) ?? [];
  return number && Number(number) * { ms: 1, s: 1000 }[unit];
}

const defined = (options) => Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));

const httpServer = createServer((_req, res) => res.writeHead(404).end());
const io = new Server(httpServer, {
  ...defined({
    pingInterval: duration("session.ping_interval"),
    pingTimeout: duration("session.ping_timeout"),
    connectTimeout: duration("session.connect_timeout"),
    upgradeTimeout: duration("session.upgrade_timeout"),
  }),
  allowEIO3: fault !== "no-eio3",
  cors: fault === "no-cors" ? undefined : { origin: settings.get("cors.allowed_origins")?.split(",") ?? "*" },
  maxHttpBufferSize: fault === "small" ? 800_000 : 1e6,
});
if (fault === "any-namespace") io.of(/.*/);

/** `io.emit`, or one of the faults that a server could have in its place. */
let chats = 0;
let held = null;
function broadcast(socket, event, args) {
  const everyone = socket.nsp;
  chats += 1;
  const nth = chats % 20 === 0;
  switch (fault) {
    case "drop": // one message is lost for everyone
      if (nth) return;
      break;
    case "drop-for-one": // one message is lost for one recipient
      if (nth) return everyone.except([...everyone.sockets.keys()].at(-1)).emit(event, ...args);
      break;
    case "double":
      if (nth) everyone.emit(event, ...args);
      break;
    case "swap": // one message overtakes the one before it
      if (nth) {
        held = [event, ...args];
        return setTimeout(release, 5, everyone);
      }
      break;
    case "not-to-sender":
      return socket.broadcast.emit(event, ...args);
    case "args": // several arguments become one list
      return everyone.emit(event, args.length > 1 ? args : args[0]);
    case "binary": // bytes become an array of numbers
      return everyone.emit(event, ...JSON.parse(JSON.stringify(args)));
    case "key-order": // objects printed again from a sorted map
      return everyone.emit(event, ...args.map(sorted));
    case "surrogates": // text that went through a strict UTF-8 string
      return everyone.emit(event, ...args.map((a) => (typeof a === "string" ? Buffer.from(a).toString() : a)));
  }
  everyone.emit(event, ...args);
  if (fault === "swap" && held) release(everyone);
}

function release(everyone) {
  if (held) everyone.emit(...held);
  held = null;
}

function sorted(value) {
  if (value === null || typeof value !== "object" || Array.isArray(value) || Buffer.isBuffer(value)) return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

const ACTIONS = {
  broadcast,
  echo: (socket, event, args) => (fault === "leak" ? socket.nsp : socket).emit(event, ...args),
};

/** Serves a namespace by the rules that it has. */
function serve(namespace) {
  const rules = events.filter((event) => (event.namespace ?? "/") === namespace);
  const known = new Map(rules.map(({ name, action }) => [name, ACTIONS[action]]));
  io.of(namespace).on("connection", (socket) => {
    console.error(`connected ${socket.id}`);
    socket.onAny((event, ...args) => {
      const ack = typeof args.at(-1) === "function" ? args.pop() : () => {};
      const name = String(event); // an EventEmitter makes no difference between 7 and "7"
      known.get(name)?.(socket, name, args);
      if (!acks) return;
      if (fault === "ack-text") return ack("ok");
      ack(known.has(name) ? { ok: true } : { ok: false, error: "unknown_event" });
    });
    socket.on("disconnect", (reason) => console.error(`disconnected ${socket.id}: ${reason}`));
  });
}

for (const namespace of settings.get("namespaces")?.split(",") ?? ["/"]) serve(namespace);

// The original has no handler for SIGTERM: it is gone at once and its clients lose their connection.
// (`io.close()` would send an Engine.IO "close" packet to those on polling, and python-socketio
// does not come back after that.)
process.once("SIGTERM", () => {
  if (fault !== "disconnect") process.exit(0);
  io.disconnectSockets();
  setTimeout(() => process.exit(0), 100);
});

const [host, port] = settings.get("server.listen").split(":");
httpServer.listen(Number(port), host);
