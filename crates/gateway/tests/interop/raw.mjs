// Engine.IO in plain bytes, for what no official client can be made to do: requests and responses, a polling
// session, and a WebSocket that keeps every frame and how the connection ended.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { Agent, request as httpRequest } from "node:http";
import { connect as tcpConnect } from "node:net";
import { DEADLINE_MS, within } from "./clients.mjs";

export const PATH = "/socket.io/";

const SEPARATOR = "\u001e"; // between the packets of an EIO4 payload
const ACCEPT_SUFFIX = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const OPCODE = { continuation: 0, text: 1, binary: 2, close: 8, ping: 9, pong: 10 };

// --- requests -------------------------------------------------------------------------------------

const shared = new Agent({ keepAlive: true });
/** Requests over one connection, one after the other. */
const oneConnection = () => new Agent({ keepAlive: true, maxSockets: 1 });

/** One HTTP request: `{ status, headers, body, bytes }`, or an error if the connection breaks. */
export function request(url, query, options = {}) {
  // `onSent` is called when it is on its way.
  const { path = PATH, method = "GET", headers = {}, body, agent = shared, onSent = () => {} } = options;
  const answer = new Promise((resolve, reject) => {
    const { hostname, port } = new URL(url);
    const target = { hostname, port, path: `${path}?${query}`, method, headers, agent };
    const sent = httpRequest(target, async (response) => {
      const chunks = [];
      try {
        for await (const chunk of response) chunks.push(chunk);
      } catch (error) {
        return reject(error);
      }
      const bytes = Buffer.concat(chunks);
      resolve({ status: response.statusCode, headers: response.headers, body: bytes.toString(), bytes });
    });
    sent.setTimeout(2 * DEADLINE_MS, () => sent.destroy(new Error("no answer")));
    sent.on("error", reject);
    sent.on("finish", onSent);
    sent.end(body);
  });
  return within(answer, `the answer to ${method} ?${query}`);
}

/** The refusal of Node's engine.io with this code. */
export function assertRefused(answer, code, message) {
  assert.equal(answer.status, 400, answer.body);
  assert.deepEqual(JSON.parse(answer.body), { code, message });
}

/** The same for a WebSocket, where Node has no JSON. */
export function assertSocketRefused(link, message) {
  assert.equal(link.status, 400, link.body);
  assert.ok(link.body.includes(message), link.body);
}

// --- polling --------------------------------------------------------------------------------------

/**
 * An EIO4 session that polls. Its GET requests have a connection of their own, which stands since the handshake, and
 * so have its POST requests: what is sent first is what a server sees first.
 */
export class Polling {
  #packets = [];
  #reader = oneConnection();
  #writer = oneConnection();

  static async open(url, { path = PATH, query = "EIO=4&transport=polling" } = {}) {
    const polling = Object.assign(new Polling(), { url, path, query });
    const opened = await polling.get();
    assert.equal(opened.status, 200, opened.body);
    assert.match(opened.body, /^0\{/);
    polling.handshake = JSON.parse(opened.body.slice(1));
    polling.sid = polling.handshake.sid;
    polling.query += `&sid=${polling.sid}`;
    return polling;
  }

  /** The same, connected to "/". */
  static async connect(url) {
    const polling = await Polling.open(url);
    await polling.send("40");
    assert.match(await polling.next("CONNECT"), /^40\{"sid":"/);
    return polling;
  }

  get(more = "", options) {
    return request(this.url, this.query + more, { path: this.path, agent: this.#reader, ...options });
  }

  /** A poll while another one waits. */
  getBeside() {
    return this.get("", { agent: this.#writer });
  }

  /** A poll that is on its way when this returns: `[answer]`, so that nobody waits for the answer as well. */
  async beginPoll(more) {
    let answer;
    const sent = new Promise((onSent) => (answer = this.get(more, { onSent })));
    await Promise.race([sent, answer]);
    return [answer];
  }

  post(body, headers = { "Content-Type": "text/plain;charset=UTF-8" }) {
    return request(this.url, this.query, { path: this.path, method: "POST", headers, body, agent: this.#writer });
  }

  async send(...packets) {
    const answer = await this.post(packets.join(SEPARATOR));
    assert.deepEqual([answer.status, answer.body], [200, "ok"], `POST ${packets[0].slice(0, 80)}`);
  }

  /** The packets of one poll. */
  async poll() {
    const answer = await this.get();
    assert.equal(answer.status, 200, answer.body);
    return answer.body.split(SEPARATOR);
  }

  /** The next packet; pings are answered and passed over. */
  async next(what = "a packet") {
    for (;;) {
      while (!this.#packets.length) this.#packets = await within(this.poll(), `a polling client waits for ${what}`);
      const packet = this.#packets.shift();
      if (packet !== "2") return packet;
      await this.send("3");
    }
  }

  async expect(packet) {
    assert.equal(await this.next(packet), packet);
  }
}

// --- WebSocket ------------------------------------------------------------------------------------

/** The bytes of a frame as a client sends it: masked. */
export function frame(message, { opcode, fin = true } = {}) {
  const text = typeof message === "string";
  const payload = Buffer.from(message);
  const head = [(fin ? 0x80 : 0) | (opcode ?? (text ? OPCODE.text : OPCODE.binary))];
  if (payload.length < 126) head.push(0x80 | payload.length);
  else if (payload.length < 65_536) head.push(0x80 | 126, payload.length >> 8, payload.length & 255);
  else
    head.push(
      0x80 | 127,
      ...[56, 48, 40, 32, 24, 16, 8, 0].map((bits) => Math.floor(payload.length / 2 ** bits) & 255),
    );
  const mask = randomBytes(4);
  for (let at = 0; at < payload.length; at++) payload[at] ^= mask[at & 3];
  return Buffer.concat([Buffer.from(head), mask, payload]);
}

/** A WebSocket connection, or what was answered instead. */
export class WebSocketLink {
  #bytes = Buffer.alloc(0);
  #fragments = null;
  #queue = [];
  #waiting = null;
  /** Why the server closed it: undefined without a close frame, null for one without a code. */
  closeCode = undefined;
  closeReason = undefined;

  /**
   * Sends the handshake and returns when it is answered: with 101, or `status`, `headers` and `body` say what. An
   * answer that never comes is an error.
   */
  static async open(url, query, { path = PATH, version = "1.1", headers = {} } = {}) {
    const link = new WebSocketLink();
    const { hostname, port, host } = new URL(url);
    const socket = (link.socket = tcpConnect({ host: hostname, port, noDelay: true }));
    link.ended = new Promise((resolve) => {
      let [fin, error] = [false, null];
      socket.once("end", () => (fin = true));
      socket.on("error", (cause) => (error ??= fin ? null : (cause.code ?? cause.message)));
      socket.once("close", () => resolve({ fin, error }));
    });
    const key = randomBytes(16).toString("base64");
    const fields = {
      Host: host,
      Connection: "Upgrade",
      Upgrade: "websocket",
      "Sec-WebSocket-Version": 13,
      "Sec-WebSocket-Key": key,
      ...headers,
    };
    const lines = Object.entries(fields).map(([name, value]) => `${name}: ${value}\r\n`);
    socket.write(`GET ${path}?${query} HTTP/${version}\r\n${lines.join("")}\r\n`);
    await within(link.#answered(), `the answer to the WebSocket handshake ?${query}`);
    if (link.status === 101) {
      const accept = createHash("sha1")
        .update(key + ACCEPT_SUFFIX)
        .digest("base64");
      assert.equal(link.headers["sec-websocket-accept"], accept);
    }
    return link;
  }

  /** One that is open, with its session. */
  static async session(url, { path = PATH, query = "EIO=4&transport=websocket", ...options } = {}) {
    const link = await WebSocketLink.open(url, query, { path, ...options });
    assert.equal(link.status, 101, link.body);
    const opened = await link.next("the open packet");
    assert.match(opened, /^0\{/);
    link.handshake = JSON.parse(opened.slice(1));
    link.sid = link.handshake.sid;
    return link;
  }

  /** One that is connected to "/". */
  static async connect(url, options) {
    const link = await WebSocketLink.session(url, options);
    link.send("40");
    const connected = await link.message("CONNECT");
    assert.match(connected, /^40\{"sid":"/);
    link.socketId = JSON.parse(connected.slice(2)).sid;
    return link;
  }

  /** Reads the answer's head; without a 101 its body, too. */
  #answered() {
    return new Promise((resolve, reject) => {
      const onData = (chunk) => {
        this.#bytes = Buffer.concat([this.#bytes, chunk]);
        const end = this.#bytes.indexOf("\r\n\r\n");
        if (end < 0) return;
        const [first, ...lines] = this.#bytes.subarray(0, end).toString("latin1").split("\r\n");
        const rest = this.#bytes.subarray(end + 4);
        this.status = Number(first.split(" ")[1]);
        this.headers = Object.fromEntries(
          lines.map((line) => [
            line.slice(0, line.indexOf(":")).toLowerCase(),
            line.slice(line.indexOf(":") + 1).trim(),
          ]),
        );
        if (this.status === 101) {
          this.socket.off("data", onData);
          this.#bytes = Buffer.alloc(0);
          this.socket.on("data", (bytes) => this.#arrived(bytes));
          this.#arrived(rest);
          resolve();
        } else if (rest.length >= Number(this.headers["content-length"] ?? 0)) {
          this.body = rest.toString();
          this.socket.end();
          resolve();
        }
      };
      this.socket.on("data", onData);
      this.ended.then(({ error }) => reject(new Error(`the connection ended without an answer (${error ?? "FIN"})`)));
    });
  }

  #arrived(bytes) {
    this.#bytes = this.#bytes.length ? Buffer.concat([this.#bytes, bytes]) : bytes;
    while (this.#takeFrame());
  }

  #takeFrame() {
    const bytes = this.#bytes;
    if (bytes.length < 2) return false;
    let [length, start] = [bytes[1] & 127, 2];
    const wide = { 126: 2, 127: 8 }[length] ?? 0;
    if (bytes.length < 2 + wide) return false;
    if (wide === 2) length = bytes.readUInt16BE(2);
    if (wide === 8) length = Number(bytes.readBigUInt64BE(2));
    start += wide;
    if (bytes.length < start + length) return false;
    this.#bytes = bytes.subarray(start + length);
    this.#onFrame(bytes[0] & 15, Boolean(bytes[0] & 0x80), bytes.subarray(start, start + length));
    return true;
  }

  #onFrame(opcode, fin, payload) {
    if (opcode === OPCODE.ping) return this.sendFrame(payload, { opcode: OPCODE.pong });
    if (opcode === OPCODE.pong) return;
    if (opcode === OPCODE.close) {
      this.closeCode = payload.length ? payload.readUInt16BE(0) : null;
      this.closeReason = payload.subarray(2).toString();
      this.socket.end(frame(payload, { opcode: OPCODE.close }));
      return;
    }
    this.#fragments ??= { opcode, parts: [] };
    this.#fragments.parts.push(payload);
    if (!fin) return;
    const { opcode: kind, parts } = this.#fragments;
    this.#fragments = null;
    const whole = Buffer.concat(parts);
    const message = kind === OPCODE.text ? whole.toString() : whole;
    const waiting = this.#waiting;
    this.#waiting = null;
    if (waiting) waiting(message);
    else this.#queue.push(message);
  }

  /** Sends messages, all in one write. */
  send(...messages) {
    this.socket.write(Buffer.concat(messages.map((message) => frame(message))));
  }

  sendFrame(payload, options) {
    this.socket.write(frame(payload, options));
  }

  /** The next message: a string or a Buffer. A connection that ends instead is an error. */
  async next(what = "a message") {
    if (this.#queue.length) return this.#queue.shift();
    const arrival = new Promise((resolve) => (this.#waiting = resolve));
    const gone = this.ended.then(({ error }) => {
      if (this.#waiting) throw new Error(`the connection ended (${error ?? "FIN"}) while waiting for ${what}`);
    });
    return within(Promise.race([arrival, gone]), `a WebSocket waits for ${what}`).finally(() => (this.#waiting = null));
  }

  /** The next message; pings are answered and passed over. */
  async message(what) {
    for (;;) {
      const message = await this.next(what);
      if (message !== "2") return message;
      this.send("3");
    }
  }

  async expect(...messages) {
    for (const wanted of messages) assert.deepEqual(await this.message(String(wanted).slice(0, 80)), wanted);
  }

  /** What has arrived and nobody has asked for. */
  get unread() {
    return this.#queue;
  }

  /** Waits for the end: `{ fin, error }`: whether the server has ended its side, and what went wrong before that. */
  closed(what = "a WebSocket is closed by the server") {
    return within(this.ended, what);
  }

  /** As when the network goes: no close frame. */
  cut() {
    this.socket.destroy();
  }

  close() {
    this.socket.destroy();
  }
}
