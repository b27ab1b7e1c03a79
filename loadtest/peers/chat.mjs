// What every server on Node.js and Bun has in common: the application, and its arguments. As a team would
// write it: nothing tuned.
import { parseArgs } from "node:util";

const options = { port: { type: "string", default: "5000" }, redis: { type: "string" } };
export const { port, redis } = parseArgs({ options }).values;

export const cors = { origin: "*" };

export function chat(io) {
  io.on("connection", (socket) => {
    socket.on("chat_message", (...args) => io.emit("chat_message", ...args));
    socket.on("server_message", (...args) => socket.emit("server_message", ...args));
    socket.on("join", (room) => socket.join(room));
    socket.on("room_message", (room, ...args) => io.to(room).emit("room_message", ...args));
  });
}
