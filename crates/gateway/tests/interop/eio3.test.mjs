// Polling as version 2 speaks it in a browser, and old Flutter packages with it: raw bytes instead of
// base64. The version 2 client cannot do that under Node.js, so this test writes and reads the bytes itself
// (Engine.IO protocol 3, "payload": a 0 for text or a 1 for bytes, the length in digits, 255, the packet).
import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, it } from "node:test";
import { DEADLINE_MS, VOICES, connect } from "./clients.mjs";
import { startServer } from "./server.mjs";

const timeout = 60_000;
const MESSAGE = 4; // the Engine.IO packet type: a digit before text, a byte before bytes
let server;
let peer;

before(async () => {
  server = await startServer();
});
after(() => server?.stop());

beforeEach(async () => {
  peer = await connect(
    server.url,
    VOICES.find(({ name }) => name === "v4 websocket"),
  );
});
afterEach(() => peer?.close());

function encode(packets) {
  return Buffer.concat(
    packets.flatMap((packet) => {
      const text = typeof packet === "string";
      const body = text ? Buffer.from(packet) : Buffer.concat([Buffer.of(MESSAGE), packet]);
      return [Buffer.of(text ? 0 : 1, ...[...String(body.length)].map(Number), 255), body];
    }),
  );
}

/** Bytes that came as base64, behind "b" and the type: JavaScript clients take that unasked, Java ones do not. */
const fromBase64 = new WeakSet();

/** Text stands for itself; a packet of bytes becomes a Buffer, without its type. */
function decode(payload, contentType) {
  const packets = [];
  if (contentType.startsWith("text/plain")) {
    for (let rest = payload.toString(); rest; ) {
      const start = rest.indexOf(":") + 1;
      const end = start + Number.parseInt(rest, 10); // in characters, as JavaScript counts them
      packets.push(fromText(rest.slice(start, end)));
      rest = rest.slice(end);
    }
    return packets;
  }
  for (let rest = payload; rest.length; ) {
    const separator = rest.indexOf(255);
    const end = separator + 1 + Number([...rest.subarray(1, separator)].join(""));
    const body = rest.subarray(separator + 1, end);
    if (rest[0] === 1) assert.equal(body[0], MESSAGE, "type of a packet of bytes");
    packets.push(rest[0] === 1 ? Buffer.from(body.subarray(1)) : fromText(body.toString()));
    rest = rest.subarray(end);
  }
  return packets;
}

function fromText(packet) {
  if (!packet.startsWith(`b${MESSAGE}`)) return packet;
  const bytes = Buffer.from(packet.slice(2), "base64");
  fromBase64.add(bytes);
  return bytes;
}

class Poller {
  #packets = [];

  static async open(query = "") {
    const poller = new Poller();
    poller.url = `${server.url}/socket.io/?EIO=3&transport=polling${query}`;
    const { sid } = JSON.parse((await poller.packet()).slice(1));
    poller.url += `&sid=${sid}`;
    assert.equal(await poller.packet(), "40", "the namespace is connected without being asked for");
    return poller;
  }

  async packet() {
    while (!this.#packets.length) {
      const response = await fetch(this.url, { signal: AbortSignal.timeout(DEADLINE_MS) });
      const body = Buffer.from(await response.arrayBuffer());
      assert.equal(response.status, 200, body.toString());
      this.contentType = response.headers.get("content-type");
      this.#packets = decode(body, this.contentType);
    }
    return this.#packets.shift();
  }

  /** Bytes go as they are; text alone goes as text. */
  async send(...packets) {
    const raw = packets.some((packet) => typeof packet !== "string");
    const response = await fetch(this.url, {
      method: "POST",
      headers: { "Content-Type": raw ? "application/octet-stream" : "text/plain;charset=UTF-8" },
      body: raw ? encode(packets) : packets.map((packet) => `${packet.length}:${packet}`).join(""),
    });
    assert.equal(await response.text(), "ok");
  }
}

const BYTES = Buffer.from([0, 1, 2, 0xfe, 0xff]);
const HEADER = /^45(\d)-(.*)$/s;

it("bytes arrive as bytes", { timeout }, async () => {
  const poller = await Poller.open();
  peer.emit("chat_message", "é😀", { a: BYTES, b: [Buffer.alloc(0)] });
  await peer.expect("chat_message", "é😀", { a: BYTES, b: [Buffer.alloc(0)] });
  const [, attachments, json] = HEADER.exec(await poller.packet()) ?? assert.fail("not a binary event");
  assert.equal(attachments, "2");
  const [a, b] = [0, 1].map((num) => ({ _placeholder: true, num }));
  assert.deepEqual(JSON.parse(json), ["chat_message", "é😀", { a, b: [b] }]);
  assert.deepEqual(await poller.packet(), BYTES);
  assert.deepEqual(await poller.packet(), Buffer.alloc(0));
  await poller.send("41", "1");
});

it("bytes arrive in binary framing, as Node has it", { timeout }, async () => {
  const poller = await Poller.open();
  // Long enough for a length of several digits, and with text before and behind it.
  const long = Buffer.alloc(1234, "0123456789abcde\xff", "latin1");
  peer.emit("chat_message", "é");
  peer.emit("chat_message", BYTES, long);
  peer.emit("chat_message", "漢字😀");
  await peer.expect("chat_message", "é");
  await peer.expect("chat_message", BYTES, long);
  await peer.expect("chat_message", "漢字😀");
  assert.equal(await poller.packet(), '42["chat_message","é"]');
  assert.match(await poller.packet(), /^452-/);
  for (const sent of [BYTES, long]) {
    const got = await poller.packet();
    assert.deepEqual(got, sent);
    assert.ok(!fromBase64.has(got), "bytes as base64");
    assert.equal(poller.contentType, "application/octet-stream");
  }
  assert.equal(await poller.packet(), '42["chat_message","漢字😀"]');
  await poller.send("41", "1");
});

it("bytes are taken as bytes", { timeout }, async () => {
  const poller = await Poller.open();
  const event = `["chat_message","漢字😀",{"_placeholder":true,"num":0}]`;
  await poller.send(`451-${event}`, BYTES, `42["chat_message","and text behind it 😀"]`);
  await peer.expect("chat_message", "漢字😀", BYTES);
  await peer.expect("chat_message", "and text behind it 😀");
  assert.deepEqual([await poller.packet(), await poller.packet()], [`451-${event}`, BYTES]);
  assert.equal(await poller.packet(), `42["chat_message","and text behind it 😀"]`);
  await poller.send("41", "1");
});

it("text between bytes keeps its place", { timeout }, async () => {
  const poller = await Poller.open();
  for (let n = 0; n < 40; n++) peer.emit("chat_message", n, n % 4 ? "wide 漢字😀" : BYTES);
  for (let n = 0; n < 40; n++) {
    await peer.expect("chat_message", n, n % 4 ? "wide 漢字😀" : BYTES);
    const text = await poller.packet();
    const [event, number, payload] = JSON.parse(text.slice(text.indexOf("[")));
    assert.deepEqual([event, number], ["chat_message", n]);
    if (n % 4) assert.equal(payload, "wide 漢字😀");
    else assert.deepEqual(await poller.packet(), BYTES, `attachment of message ${n}`);
  }
  await poller.send("41", "1");
});

it("with b64=1 bytes arrive as base64 in text", { timeout }, async () => {
  const poller = await Poller.open("&b64=1");
  peer.emit("chat_message", BYTES);
  await peer.expect("chat_message", BYTES);
  assert.match(await poller.packet(), /^451-/);
  assert.deepEqual(await poller.packet(), BYTES);
  assert.match(poller.contentType, /^text\/plain/);
  await poller.send("41", "1");
});
