// A proxy in front of a server that passes HTTP requests on and fails WebSockets, in a way that is seen in the wild.
//
//   node proxy.mjs PORT FAULT      in front of 127.0.0.1:PORT; tells what it sees as lines of JSON
import { EventEmitter } from "node:events";
import { Agent, createServer, request as httpRequest } from "node:http";
import { connect as tcpConnect } from "node:net";
import { fileURLToPath } from "node:url";

/** What becomes of the server's answer to an upgrade, and of the two connections. */
export const FAULTS = {
  drop: "dropped right after the 101",
  swallow: "open, and no frame passes",
  never: "the 101 is never relayed",
  502: "answered 502 after the 101",
};

const BAD_GATEWAY = "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/** The opcode of the frame that begins these bytes says that it closes the WebSocket. */
const isClose = (bytes) => (bytes[0] & 15) === 8;

/** Emits `seen` with `{ request }` or `{ upgrade }`; the latter again when the server has ended it. */
export class Proxy extends EventEmitter {
  /** `{ method, body }`, in order. */
  requests = [];
  /** `{ status, over }`: the server's answer, and whether it has closed this, or we have. */
  upgrades = [];
  #open = new Set();
  #agent = new Agent({ keepAlive: true });

  /** `fault`: one of FAULTS, or "http10" for a proxy that speaks HTTP/1.0 to the server and is otherwise right. */
  static async start(port, fault) {
    const proxy = Object.assign(new Proxy(), { target: { host: "127.0.0.1", port }, fault });
    proxy.server = createServer((req, res) => proxy.#pass(req, res));
    proxy.server.on("upgrade", (req, socket, head) => proxy.#upgrade(req, socket, head));
    proxy.server.on("connection", (socket) => proxy.#keep(socket));
    await new Promise((resolve) => proxy.server.listen(0, "127.0.0.1", resolve));
    proxy.port = proxy.server.address().port;
    proxy.url = `http://127.0.0.1:${proxy.port}`;
    return proxy;
  }

  stop() {
    this.server.close();
    this.#agent.destroy();
    this.#open.forEach((socket) => socket.destroy());
  }

  #keep(socket) {
    this.#open.add(socket);
    socket.on("error", () => {}); // the other side hears of it by the close
    socket.once("close", () => this.#open.delete(socket));
  }

  async #pass(req, res) {
    const { method, url, headers } = req;
    const chunks = [];
    try {
      for await (const chunk of req) chunks.push(chunk);
    } catch {
      return; // the client has gone
    }
    const body = Buffer.concat(chunks);
    const seen = { method, body: body.toString() };
    this.requests.push(seen);
    this.emit("seen", { request: seen });
    const target = { ...this.target, method, path: url, headers, agent: this.#agent };
    const passed = httpRequest(target, (answer) => {
      res.writeHead(answer.statusCode, answer.headers);
      answer.pipe(res);
    });
    passed.on("error", () => res.destroy());
    res.on("close", () => passed.destroy());
    passed.end(body);
  }

  #upgrade(req, client, head) {
    const upgrade = { status: 0, over: false };
    this.upgrades.push(upgrade);
    const server = tcpConnect(this.target);
    this.#keep(server);
    client.on("close", () => server.destroy());
    const over = () => {
      upgrade.over = true;
      this.emit("seen", { upgrade });
    };
    server.on("close", over);
    const lines = [];
    for (let at = 0; at < req.rawHeaders.length; at += 2)
      lines.push(`${req.rawHeaders[at]}: ${req.rawHeaders[at + 1]}`);
    const version = this.fault === "http10" ? "1.0" : "1.1";
    server.write(`GET ${req.url} HTTP/${version}\r\n${lines.join("\r\n")}\r\n\r\n`);
    server.write(head);
    let answer = Buffer.alloc(0);
    const onData = (chunk) => {
      answer = Buffer.concat([answer, chunk]);
      if (!answer.includes("\r\n\r\n")) return;
      server.off("data", onData);
      upgrade.status = Number(answer.toString("latin1").split(" ")[1]);
      this.emit("seen", { upgrade });
      // Nothing but a close can come unasked. Some servers then wait for the client's answer.
      server.on("data", (bytes) => isClose(bytes) && over());
      this.#answered(upgrade.status, answer, client, server);
    };
    server.on("data", onData);
  }

  #answered(status, answer, client, server) {
    switch (status === 101 ? this.fault : "refused") {
      case "drop":
        client.write(answer, () => client.destroy());
        break;
      case "swallow":
        client.write(answer);
        client.resume();
        break;
      case "never":
        client.resume();
        break;
      case "502":
        client.end(BAD_GATEWAY);
        server.destroy();
        break;
      default:
        client.write(answer);
        client.pipe(server);
        server.pipe(client);
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [port, fault] = process.argv.slice(2);
  const proxy = await Proxy.start(Number(port), fault);
  const tell = (what) => console.log(JSON.stringify(what));
  proxy.on("seen", tell);
  tell({ port: proxy.port });
}
