// One Node.js server of a mixed cluster: socket.io with @socket.io/redis-adapter, as a team that migrates
// has it. The test tells it what to do over IPC: { number, calls: [[["to", "room"], ["emit", "event", …]]] } runs
// io.to("room").emit("event", …), and is answered { number, outcomes: [{ value }] }.
//
//   node cluster-peer.mjs PORT REDIS_URL OPTIONS      (JSON)
//
// Options: `adapter`, those of @socket.io/redis-adapter; `standIn`, whether it takes the place of an Antiphon node.
import { createServer } from "node:http";
import { Server } from "socket.io";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { standIn } from "./stand-in.mjs";

const [port, url, options] = process.argv.slice(2);
const { adapter, standIn: standsIn } = JSON.parse(options);
const publisher = createClient({ url });
const subscriber = publisher.duplicate();
for (const client of [publisher, subscriber]) client.on("error", () => {}); // it reconnects by itself
await Promise.all([publisher.connect(), subscriber.connect()]);

const http = createServer();
const io = new Server(http, { adapter: createAdapter(publisher, subscriber, adapter), allowEIO3: true, cors: { origin: "*" } });
for (const namespace of [io.of("/"), io.of("/second")]) {
  namespace.on("connection", (socket) => {
    socket.on("chat_message", (...args) => namespace.emit("chat_message", ...args));
    socket.on("to_others", (...args) => socket.broadcast.emit("to_others", ...args));
    socket.on("join", (room, done) => {
      socket.join(room);
      done?.({ ok: true });
    });
    socket.on("say", (room, ...args) => namespace.to(room).emit("say", ...args));
  });
  // What other servers send with serverSideEmit: its own clients hear of it, and who asks gets an answer.
  namespace.on("probe", (...args) => {
    const answer = typeof args.at(-1) === "function" ? args.pop() : () => {};
    if (!standsIn) namespace.local.emit("probe", ...args);
    answer(standsIn ? undefined : args);
  });
}
if (standsIn) standIn(io, subscriber);

/** The method of that name, called, or the property; an object { id } picks the socket with that id. */
function take(target, step) {
  if (!Array.isArray(step)) return target.find((socket) => socket.id === step.id);
  const [name, ...args] = step;
  return typeof target[name] === "function" ? target[name](...args) : target[name];
}

/** What can be sent: of sockets, what fetchSockets() tells about them. */
function plain(value) {
  if (Array.isArray(value)) return value.map(plain);
  if (!value?.handshake) return value;
  const { id, handshake, rooms, data } = value;
  return { id, handshake, rooms: [...rooms], data };
}

async function outcome(value) {
  try {
    return { value: plain(await value) };
  } catch ({ message, responses }) {
    return { error: message, responses };
  }
}

process.on("message", async ({ number, calls }) => {
  const values = calls.map((call) =>
    // Nothing waits before it must: what several calls publish is published in this turn.
    call.reduce((target, step) => (target instanceof Promise ? target.then((it) => take(it, step)) : take(target, step)), io),
  );
  process.send({ number, outcomes: await Promise.all(values.map(outcome)) });
});
process.on("disconnect", () => process.exit());
http.listen(Number(port), "127.0.0.1", () => process.send("listening"));
