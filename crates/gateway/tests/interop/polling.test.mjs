// Polling as clients other than the JavaScript ones do it, and what a client that polls gets at a time.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { createContext, runInContext } from "node:vm";
import { VERSIONS, connect, connectAll, everyone, within } from "./clients.mjs";
import { Polling, WebSocketLink, assertRefused, request } from "./raw.mjs";
import { STOPS_AT_ONCE, startServer, unlikeNode } from "./server.mjs";

const timeout = 60_000;
let server;

before(async () => {
  server = await startServer({ settings: STOPS_AT_ONCE });
});
after(() => server?.stop());

const event = (name, ...args) => `42${JSON.stringify([name, ...args])}`;

// --- many at once ---------------------------------------------------------------------------------

describe("many events while a client has no poll waiting", () => {
  it("1800 small ones reach every version, in order", { timeout }, async () => {
    const voices = VERSIONS.map((version) => ({ name: `v${version} polling`, version, transport: "polling" }));
    const clients = await connectAll(server.url, [...voices, ...voices]);
    const sender = await WebSocketLink.connect(server.url);
    try {
      const count = 1800;
      sender.send(...Array.from({ length: count }, (_, n) => event("chat_message", n)));
      await everyone(clients, async (client) => {
        for (let n = 0; n < count; n++) await client.expect("chat_message", n);
        assert.deepEqual(client.disconnects, [], client.name);
      });
    } finally {
      clients.forEach((client) => client.close());
      sender.close();
    }
  });

  // python-engineio closes a session when one response has more than 16 packets (Payload.max_decode_packets).
  describe("come in responses of at most 16 packets", { skip: unlikeNode, concurrency: true }, () => {
    const COUNT = 100;
    const PACKETS_MAX = 16;

    /** All responses until `count` packets have come. */
    async function responses(poll, count) {
      const polled = [];
      for (let got = 0; got < count; got += polled.at(-1).length) polled.push(await within(poll(), "a poll"));
      for (const { length } of polled) assert.ok(length <= PACKETS_MAX, `a response of ${length} packets`);
      assert.ok(polled.length <= count / PACKETS_MAX + 3, `${polled.length} responses for ${count} packets`);
      return polled.flat();
    }

    /** Sends to itself, so that what others get waits for them when this returns. */
    async function sendAll(sender, events) {
      sender.send(...events.flat());
      await sender.expect(...events.flat());
    }

    it("for EIO4", { timeout }, async () => {
      const own = await startServer({ settings: STOPS_AT_ONCE });
      try {
        const [polling, sender] = [await Polling.connect(own.url), await WebSocketLink.connect(own.url)];
        const events = Array.from({ length: COUNT }, (_, n) => event("chat_message", n));
        await sendAll(sender, events);
        assert.deepEqual(await responses(() => polling.poll(), COUNT), events);
      } finally {
        await own.stop();
      }
    });

    it("for EIO4, with attachments", { timeout }, async () => {
      const own = await startServer({ settings: STOPS_AT_ONCE });
      try {
        const [polling, sender] = [await Polling.connect(own.url), await WebSocketLink.connect(own.url)];
        const json = (n) => `452-["chat_message",${n},{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`;
        const events = Array.from({ length: COUNT / 2 }, (_, n) => [json(n), Buffer.of(n), Buffer.of(n, n)]);
        await sendAll(sender, events);
        const base64 = (part) => (typeof part === "string" ? part : `b${part.toString("base64")}`);
        assert.deepEqual(await responses(() => polling.poll(), events.flat().length), events.flat().map(base64));
      } finally {
        await own.stop();
      }
    });

    it("for EIO3", { timeout }, async () => {
      const own = await startServer({ settings: STOPS_AT_ONCE });
      try {
        const polling = await Eio3.open(own.url);
        const sender = await WebSocketLink.connect(own.url);
        const events = Array.from({ length: COUNT }, (_, n) => event("chat_message", n));
        await sendAll(sender, events);
        assert.deepEqual(await responses(() => polling.poll(), COUNT), events);
      } finally {
        await own.stop();
      }
    });
  });
});

/** A session of EIO3 that polls in text. */
class Eio3 {
  headers = { "Content-Type": "text/plain;charset=UTF-8" };

  /** One that is connected to "/". `more`: what it has of its own. */
  static async open(url, query = "EIO=3&transport=polling&b64=1", more = {}) {
    const polling = Object.assign(new this(), { url, query, ...more });
    const [opened, ...rest] = await polling.poll();
    polling.query += `&sid=${JSON.parse(opened.slice(1)).sid}`;
    await polling.connected(rest);
    return polling;
  }

  /** Clients of EIO3 are connected to "/" without asking for it. */
  async connected(rest) {
    assert.deepEqual(rest.length ? rest : await this.poll(), ["40"]);
  }

  async poll() {
    const answer = await request(this.url, this.query);
    assert.equal(answer.status, 200, answer.body);
    return this.decode(this.payload(answer));
  }

  /** The packets of as many polls as it takes to get them. */
  async take(count) {
    const packets = [];
    while (packets.length < count) packets.push(...(await within(this.poll(), "a poll")));
    return packets;
  }

  payload({ body }) {
    return body;
  }

  decode(payload) {
    const packets = [];
    for (let rest = payload; rest;) {
      const start = rest.indexOf(":") + 1;
      const end = start + Number.parseInt(rest, 10); // in characters, as JavaScript counts them
      packets.push(rest.slice(start, end));
      rest = rest.slice(end);
    }
    return packets;
  }

  encode(packets) {
    return packets.map((packet) => `${packet.length}:${packet}`).join("");
  }

  async send(...packets) {
    const { headers } = this;
    const answer = await request(this.url, this.query, { method: "POST", headers, body: this.encode(packets) });
    assert.deepEqual([answer.status, answer.body], [200, "ok"]);
  }
}

// --- JSONP ----------------------------------------------------------------------------------------

/** Polling by script tags and forms, as versions 2 and 3 do it in a browser that cannot otherwise. */
class Jsonp extends Eio3 {
  headers = { "Content-Type": "application/x-www-form-urlencoded" };

  /** Runs the script. */
  payload({ body, headers }) {
    assert.match(headers["content-type"], /^text\/(javascript|plain); ?charset=utf-8$/i);
    assert.ok(body.startsWith(`___eio[${this.index}]("`) && body.endsWith('");'), body);
    assert.doesNotMatch(body, /[\u2028\u2029]/, "what ends a line in a script");
    const got = [];
    runInContext(body, createContext({ ___eio: { [this.index]: (payload) => got.push(payload) } }));
    assert.equal(got.length, 1);
    return got[0];
  }

  encode(packets) {
    // polling-jsonp.js of engine.io-client, doWrite
    const area = super.encode(packets).replace(/\\n/g, "\\\n").replace(/\n/g, "\\n");
    return new URLSearchParams({ d: area }).toString();
  }
}

/** The same for EIO4, as version 3 has it. */
class Jsonp4 extends Jsonp {
  decode(payload) {
    return payload.split("\u001e");
  }

  encode(packets) {
    return new URLSearchParams({ d: packets.join("\u001e").replace(/\\n/g, "\\\n").replace(/\n/g, "\\n") }).toString();
  }

  async connected() {
    await this.send("40");
    assert.match((await this.poll())[0], /^40\{"sid":"/);
  }
}

describe("JSONP", { concurrency: true }, () => {
  const TEXTS = ["hello", 'line\nbreak, "quotes", back\\slash, \\n', "漢字😀 é", "a\u2028b\u2029c", "+&=%20 d=1;"];
  const events = TEXTS.map((text) => event("server_message", text));

  for (const [name, Class, query, index] of [
    ["EIO3, j=0", Jsonp, "EIO=3&transport=polling&b64=1&j=0", 0],
    ["EIO3, j=12", Jsonp, "EIO=3&transport=polling&b64=1&j=12", 12],
    ["EIO3, without b64", Jsonp, "EIO=3&transport=polling&j=0", 0],
    ["EIO4", Jsonp4, "EIO=4&transport=polling&b64=1&j=3", 3],
  ]) {
    it(name, { timeout }, async () => {
      const polling = await Class.open(server.url, query, { index });
      for (const packet of events) {
        await polling.send(packet);
        assert.deepEqual(await polling.poll(), [packet]);
      }
      await polling.send(...events);
      assert.deepEqual(await polling.take(events.length), events);
      await polling.send("1");
      assertRefused(await request(server.url, polling.query), 1, "Session ID unknown");
    });
  }

  it("EIO3: pings are answered", { timeout }, async () => {
    const polling = await Jsonp.open(server.url, "EIO=3&transport=polling&b64=1&j=0", { index: 0 });
    await polling.send("2");
    assert.deepEqual(await polling.poll(), ["3"]);
  });

  it("EIO3: bytes are base64", { timeout }, async () => {
    const polling = await Jsonp.open(server.url, "EIO=3&transport=polling&b64=1&j=0", { index: 0 });
    const packets = ['451-["server_message",{"_placeholder":true,"num":0}]', "b4AAH+/w=="];
    await polling.send(...packets);
    assert.deepEqual(await polling.take(packets.length), packets);
  });

  it("takes nothing but digits for the callback's name", { timeout }, async () => {
    const answer = await request(server.url, `EIO=3&transport=polling&j=${encodeURIComponent("1];alert(1);//")}`);
    assert.match(answer.body, /^___eio\[11\]\("\d+:0\{/);
  });
});

// --- base64 ---------------------------------------------------------------------------------------

describe("base64 of Java and Android clients", { concurrency: true }, () => {
  // Every value of a byte, so that there are + and / in it, and an end that needs padding.
  const BYTES = Buffer.from([...Array.from({ length: 256 }, (_, n) => n), 0xfb, 0xff, 0xfe, 0xff]);
  const usual = BYTES.toString("base64");
  const lines = (separator) => usual.replace(/(.{76})/g, `$1${separator}`);
  const urlSafe = (text) => text.replaceAll("+", "-").replaceAll("/", "_");
  const unpadded = (text) => text.replace(/=+(?=\n?$)/, "");
  const FORMS = {
    usual,
    "lines that end in LF": `${lines("\n")}\n`,
    "lines that end in CR LF": `${lines("\r\n")}\r\n`,
    "without padding": unpadded(usual),
    "in the alphabet for URLs": urlSafe(usual),
    "all of it": unpadded(urlSafe(`${lines("\n")}\n`)),
  };
  assert.match(usual, /\+.*\/.*=$/s);
  const json = '451-["server_message",{"_placeholder":true,"num":0}]';

  for (const [form, text] of Object.entries(FORMS)) {
    it(`EIO4: ${form}`, { timeout }, async () => {
      const polling = await Polling.connect(server.url);
      await polling.send(json, `b${text}`);
      await polling.expect(json);
      await polling.expect(`b${usual}`);
      // In one payload with others, and without them.
      await polling.send(event("server_message", 1), json);
      await polling.send(`b${text}`, event("server_message", 2));
      for (const packet of [event("server_message", 1), json, `b${usual}`, event("server_message", 2)]) {
        await polling.expect(packet);
      }
    });

    it(`EIO3: ${form}`, { timeout }, async () => {
      const polling = await Eio3.open(server.url);
      await polling.send(json, `b4${text}`);
      assert.deepEqual(await polling.take(2), [json, `b4${usual}`]);
    });
  }

  it("reaches the official clients as the bytes that it is", { timeout }, async () => {
    const own = await startServer({ settings: STOPS_AT_ONCE });
    try {
      const voices = ["polling", "websocket"].map((transport) => ({ name: `v4 ${transport}`, version: 4, transport }));
      const clients = await connectAll(own.url, voices);
      const polling = await Polling.connect(own.url);
      await polling.send(json.replace("server_message", "chat_message"), `b${FORMS["all of it"]}`);
      await everyone(clients, (client) => client.expect("chat_message", BYTES));
      clients.forEach((client) => client.close());
    } finally {
      await own.stop();
    }
  });
});

// --- the end of a session -------------------------------------------------------------------------

describe("a session that its client closes", { concurrency: true }, () => {
  const GONE = [1, "Session ID unknown"];

  it("answers the poll that waits, and is gone", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    const [waiting] = await polling.beginPoll();
    await polling.send("1");
    // A server with several threads may take the second request first: then there was no poll to answer.
    const response = await waiting;
    if (response.status === 200) assert.match(response.body, /^(6|42\["chat_message","closing .*)$/s);
    else assertRefused(response, ...GONE);
    assertRefused(await polling.get(), ...GONE);
    assertRefused(await polling.post("40"), ...GONE);
  });

  it("is gone for a poll that comes later", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    await polling.send("1");
    assertRefused(await polling.get(), ...GONE);
  });

  it("takes what stands before the close, and nothing behind it", { timeout }, async () => {
    const witness = await connect(server.url, { name: "witness", version: 4, transport: "websocket" });
    const polling = await Polling.connect(server.url);
    // Others talk on this server, too.
    const mine = `closing ${polling.sid}`;
    await polling.send(
      event("chat_message", mine, 1),
      event("chat_message", mine, 2),
      "1",
      event("chat_message", mine, 3),
    );
    const heard = [];
    witness.emit("chat_message", mine, "end");
    for (;;) {
      const { args } = await witness.next();
      if (args[0] !== mine) continue;
      if (args[1] === "end") break;
      heard.push(args[1]);
    }
    assert.deepEqual(heard, [1, 2]);
    witness.close();
  });

  it("ends well whichever of close and poll is first", { timeout }, async () => {
    for (let n = 0; n < 30; n++) {
      const polling = await Polling.connect(server.url);
      const requests = [() => polling.get(), () => polling.post("1")];
      if (n % 2) requests.reverse();
      const responses = await Promise.all(requests.map((send) => send()));
      if (n % 2) responses.reverse();
      const [polled, posted] = responses;
      assert.deepEqual([posted.status, posted.body], [200, "ok"]);
      // What others say on this server may be there first.
      if (polled.status === 200) assert.match(polled.body, /^(6|42\["chat_message","closing .*)$/s);
      else assertRefused(polled, ...GONE);
      assertRefused(await polling.get(), ...GONE);
    }
  });
});
