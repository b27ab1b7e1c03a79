// socket.io as it comes, over ws. With --redis URL one node of a cluster.
import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";
import { chat, cors, port, redis } from "../chat.mjs";

const http = createServer();
const io = new Server(http, { cors });
if (redis) {
  const publisher = createClient({ url: redis });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  io.adapter(createAdapter(publisher, subscriber));
}
chat(io);

http.listen(Number(port), "127.0.0.1", () => console.log(`listening ${http.address().port}`));
