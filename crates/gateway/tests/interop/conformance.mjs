// The Node.js counterpart of examples/conformance.rs: what the protocol suites expect of a server.
//
//   node conformance.mjs --listen 127.0.0.1:PORT      (other arguments are ignored)
import { createServer } from "node:http";
import { Server as Engine } from "engine.io";
import { Server } from "socket.io";

const [host, port] = process.argv[process.argv.indexOf("--listen") + 1].split(":");
const settings = { pingInterval: 300, pingTimeout: 200, maxHttpBufferSize: 1_000_000 };

const httpServer = createServer((_req, res) => res.writeHead(404).end());
const io = new Server(httpServer, { ...settings, connectTimeout: 1500 });
const echo = new Engine(settings);
echo.attach(httpServer, { path: "/engine.io/" });

function greet(socket) {
  socket.emit("auth", socket.handshake.auth);
  socket.on("message", (...args) => socket.emit("message-back", ...args));
  socket.on("message-with-ack", (...args) => args.pop()(...args));
}
io.on("connection", greet);
io.of("/custom").on("connection", greet);

echo.on("connection", (socket) => socket.on("data", (data) => socket.send(data)));

process.once("SIGTERM", () => process.exit(0));
httpServer.listen(Number(port), host, () => console.log(`http://${host}:${httpServer.address().port}`));
