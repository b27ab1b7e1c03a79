// socket.io over uWebSockets.js.
import { createRequire } from "node:module";
import { Server } from "socket.io";
import { chat, cors, port, redis } from "../chat.mjs";

// The binary itself: the package's own entry falls back to ws with nothing but a warning where it has none
// for this Node.js, and ws is another peer.
const { platform, arch, versions } = process;
const binary = `uws_${platform}_${arch}_${versions.modules}.node`;
const { App, us_socket_local_port } = createRequire(import.meta.url)(
  `@trufflesuite/uws-js-unofficial/binaries/${binary}`,
);

if (redis) throw new Error("this server has no --redis: socket.io over uWebSockets.js is measured alone");
const app = App();
const io = new Server({ cors });
io.attachApp(app);
chat(io);

app.listen("127.0.0.1", Number(port), (socket) => {
  if (!socket) throw new Error(`cannot listen on port ${port}`);
  console.log(`listening ${us_socket_local_port(socket)}`);
});
