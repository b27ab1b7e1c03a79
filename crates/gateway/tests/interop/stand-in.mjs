// What an Antiphon node does and a Node.js server does not, for Node.js servers that stand in for Antiphon nodes.
import { decode } from "notepack.io";

const SECRET_HEADERS = ["cookie", "authorization"];

export function standIn(io, subscriber) {
  // Peers are not told what the client proves its identity with.
  for (const namespace of [io.of("/"), io.of("/second")]) {
    namespace.use((socket, next) => {
      const { headers } = socket.handshake;
      const shared = Object.entries(headers).filter(([name]) => !SECRET_HEADERS.includes(name));
      socket.handshake.headers = Object.fromEntries(shared);
      next();
    });
  }

  // Emitters from before 2021.
  subscriber.subscribe(
    "socket.io#emitter",
    (frame) => {
      const [{ nsp = "/", data }, { rooms, flags }] = decode(frame);
      io.of(nsp).local.to(rooms || []).emit(...data);
    },
    true,
  );

  // examples/asks.rs
  io.of("/ask").on("connection", (socket) => {
    socket.on("ask", async (what, options, done) => {
      try {
        done({ ok: await answer(io, what, options) });
      } catch (error) {
        done({ error: error.message });
      }
    });
  });
}

async function answer(io, what, { rooms = [], except = [], into = [], event, args = [], timeout_ms }) {
  const { adapter } = io.of("/");
  const meant = io.to(rooms).except(except);
  switch (what) {
    case "rooms":
      return [...(await adapter.allRooms())];
    case "sockets":
      return (await meant.fetchSockets()).map(({ id, rooms }) => ({ id, rooms: [...rooms] }));
    case "join":
      meant.socketsJoin(into);
      return true;
    case "leave":
      meant.socketsLeave(into);
      return true;
    case "disconnect":
      meant.disconnectSockets();
      return true;
    case "server_count":
      return adapter.serverCount();
    case "emit_with_ack":
      return meant.timeout(timeout_ms).emitWithAck(event, ...args);
  }
}
