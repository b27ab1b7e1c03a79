// socket.io on Bun's own HTTP and WebSocket server.
import { Server as Engine } from "@socket.io/bun-engine";
import { Server } from "socket.io";
import { chat, cors, port, redis } from "../chat.mjs";

if (redis) throw new Error("this server has no --redis: socket.io on Bun is measured alone");
const engine = new Engine({ path: "/socket.io/", cors });
const io = new Server();
io.bind(engine);
chat(io);

const server = Bun.serve({ hostname: "127.0.0.1", port: Number(port), ...engine.handler() });
console.log(`listening ${server.port}`);
