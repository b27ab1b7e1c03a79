// One Node.js server of a mixed cluster: socket.io with @socket.io/redis-adapter, as a team that migrates
// has it. The test tells it what to do over IPC: { call: [["to", "room"], ["emit", "event", …]] } runs
// io.to("room").emit("event", …).
import { createServer } from "node:http";
import { Server } from "socket.io";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";

const [port, url] = process.argv.slice(2);
const publisher = createClient({ url });
const subscriber = publisher.duplicate();
for (const client of [publisher, subscriber]) client.on("error", () => {}); // it reconnects by itself
await Promise.all([publisher.connect(), subscriber.connect()]);

const http = createServer();
const io = new Server(http, { adapter: createAdapter(publisher, subscriber), allowEIO3: true });
io.on("connection", (socket) => {
  socket.on("chat_message", (...args) => io.emit("chat_message", ...args));
  socket.on("to_others", (...args) => socket.broadcast.emit("to_others", ...args));
  socket.on("join", (room, done) => {
    socket.join(room);
    done?.({ ok: true });
  });
  socket.on("say", (room, ...args) => io.to(room).emit("say", ...args));
});

/** Bytes come through IPC as { $bytes: base64 }. */
const revive = (value) => {
  if (value?.$bytes !== undefined) return Buffer.from(value.$bytes, "base64");
  if (Array.isArray(value)) return value.map(revive);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, revive(inner)]));
  }
  return value;
};

process.on("message", ({ call }) => {
  let target = io;
  for (const [method, ...args] of call) {
    target = args.length || typeof target[method] === "function" ? target[method](...revive(args)) : target[method];
  }
});
process.on("disconnect", () => process.exit());
http.listen(Number(port), "127.0.0.1", () => process.send("listening"));
