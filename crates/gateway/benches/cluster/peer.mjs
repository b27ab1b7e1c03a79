// What peers.rs is, in Node.js: socket.io with @socket.io/redis-adapter. Publisher and subscriber are the same
// program; the driver asks for events in the namespace "/control".
//
//     node peer.mjs HOST PORT REDIS_URL PING_INTERVAL_MS FIRST_NUMBER FOLDER
//
// FOLDER has the npm packages in its node_modules.
import { createServer } from "node:http";
import { createRequire } from "node:module";

const [host, port, url, pingInterval, firstNumber, folder] = process.argv.slice(2);
const require = createRequire(`${folder}/package.json`);
const { Server } = require("socket.io");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");

const PADDING = ".".repeat(90);

const publisher = createClient({ url });
const subscriber = publisher.duplicate();
for (const client of [publisher, subscriber]) client.on("error", (error) => console.error(`Redis: ${error.message}`));
await Promise.all([publisher.connect(), subscriber.connect()]);

const http = createServer();
const io = new Server(http, { adapter: createAdapter(publisher, subscriber), pingInterval: Number(pingInterval) });
let number = Number(firstNumber);
io.of("/control").on("connection", (socket) => {
  socket.on("go", (count, stamp) => {
    for (let i = 0; i < count; i += 1) io.emit("event", number++, stamp, PADDING);
  });
});
http.listen(Number(port), host);
