// The Node server that Antiphon replaces, for checking the suite itself:
// what passes here is what Node does, so a failure of Antiphon is Antiphon's.
//
//   node reference.mjs --listen 127.0.0.1:PORT      (other arguments are ignored)
//
// ANTIPHON_REFERENCE=acks  answers acknowledgements as Antiphon does, which the
//                          original server never did.
// REFERENCE_BREAK=<fault>  behaves wrongly on purpose; see `selfcheck`.
import { createServer } from "node:http";
import { Server } from "socket.io";

const [host, port] = process.argv[process.argv.indexOf("--listen") + 1].split(":");
const acks = process.env.ANTIPHON_REFERENCE === "acks";
const fault = process.env.REFERENCE_BREAK ?? "";

const httpServer = createServer((_req, res) => res.writeHead(404).end());
const io = new Server(httpServer, {
  allowEIO3: fault !== "no-eio3",
  cors: fault === "no-cors" ? undefined : { origin: "*" },
  maxHttpBufferSize: fault === "small" ? 800_000 : 1e6,
});
if (fault === "any-namespace") io.of(/.*/);

/** `io.emit`, or one of the faults that a server could have in its place. */
let chats = 0;
let held = null;
function broadcast(socket, args) {
  chats += 1;
  const nth = chats % 20 === 0;
  switch (fault) {
    case "drop": // one message is lost for everyone
      if (nth) return;
      break;
    case "drop-for-one": // one message is lost for one recipient
      if (nth) return io.except([...io.of("/").sockets.keys()].at(-1)).emit("chat_message", ...args);
      break;
    case "double":
      if (nth) io.emit("chat_message", ...args);
      break;
    case "swap": // one message overtakes the one before it
      if (nth) {
        held = args;
        return setTimeout(release, 5);
      }
      break;
    case "not-to-sender":
      return socket.broadcast.emit("chat_message", ...args);
    case "args": // several arguments become one list
      return io.emit("chat_message", args.length > 1 ? args : args[0]);
    case "binary": // bytes become an array of numbers
      return io.emit("chat_message", ...JSON.parse(JSON.stringify(args)));
    case "key-order": // objects printed again from a sorted map
      return io.emit("chat_message", ...args.map(sorted));
    case "surrogates": // text that went through a strict UTF-8 string
      return io.emit("chat_message", ...args.map((a) => (typeof a === "string" ? Buffer.from(a).toString() : a)));
  }
  io.emit("chat_message", ...args);
  if (fault === "swap" && held) release();
}

function release() {
  if (held) io.emit("chat_message", ...held);
  held = null;
}

function sorted(value) {
  if (value === null || typeof value !== "object" || Array.isArray(value) || Buffer.isBuffer(value)) return value;
  return Object.fromEntries(Object.keys(value).sort().map((key) => [key, sorted(value[key])]));
}

io.on("connection", (socket) => {
  console.error(`connected ${socket.id}`);
  const known = {
    chat_message: (args) => broadcast(socket, args),
    server_message: (args) => (fault === "leak" ? io : socket).emit("server_message", ...args),
  };
  socket.onAny((event, ...args) => {
    const ack = typeof args.at(-1) === "function" ? args.pop() : () => {};
    known[event]?.(args);
    if (!acks) return;
    if (fault === "ack-text") return ack("ok");
    ack(known[event] ? { ok: true } : { ok: false, error: "unknown_event" });
  });
  socket.on("disconnect", (reason) => console.error(`disconnected ${socket.id}: ${reason}`));
});

// The original has no handler for SIGTERM: it is gone at once and its clients lose their connection.
// (`io.close()` would send an Engine.IO "close" packet to those on polling, and python-socketio
// does not come back after that.)
process.once("SIGTERM", () => {
  if (fault !== "disconnect") process.exit(0);
  io.disconnectSockets();
  setTimeout(() => process.exit(0), 100);
});

httpServer.listen(Number(port), host);
