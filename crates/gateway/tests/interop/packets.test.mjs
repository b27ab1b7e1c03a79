// Packets as official JavaScript clients do not write them, and what becomes of them at clients that others wrote: names
// with escapes, white space, bad placeholders, huge numbers, a DISCONNECT with a CONNECT, too large ones, MessagePack.
import assert from "node:assert/strict";
import { after, before, beforeEach, describe, it } from "node:test";
import msgpackParser from "socket.io-msgpack-parser";
import { IO, VERSIONS, connect, connectAll, everyone, nextEvent, until } from "./clients.mjs";
import { Polling, WebSocketLink, frame } from "./raw.mjs";
import { REFERENCE, STOPS_AT_ONCE, startServer, unlikeNode, withoutHandlers } from "./server.mjs";

const timeout = 60_000;
const RAW = { websocket: (url) => WebSocketLink.connect(url), polling: (url) => Polling.connect(url) };
const RECIPIENTS = VERSIONS.flatMap((version) =>
  ["websocket", "polling"].map((transport) => ({ name: `v${version} ${transport}`, version, transport })),
);
const MARKER = '42["chat_message","marker"]';

/** A sender in plain bytes for each transport, and official clients that listen. */
class Room {
  constructor(options, events) {
    this.options = options;
    this.events = events;
  }

  async open() {
    this.server = await startServer(this.options);
  }

  async close() {
    this.#leave();
    await this.server?.stop();
  }

  /** A test; when it fails its clients may hold leftovers, so the next test gets new ones. */
  test(body) {
    return async () => {
      this.clients ??= await connectAll(this.server.url, RECIPIENTS, {}, this.events);
      if (!this.senders) {
        this.senders = {};
        for (const transport of Object.keys(RAW)) this.senders[transport] = await RAW[transport](this.server.url);
      }
      this.links = [];
      try {
        await body();
      } catch (error) {
        this.#leave();
        throw error;
      } finally {
        this.links.forEach((link) => link.close());
      }
    };
  }

  #leave() {
    this.clients?.forEach((client) => client.close());
    this.clients = this.senders = null;
  }

  /** A WebSocket of one test. */
  async link() {
    this.links.push(await WebSocketLink.connect(this.server.url));
    return this.links.at(-1);
  }

  /** Every official client gets this next. */
  expect(event, ...args) {
    return everyone(this.clients, (client) => client.expect(event, ...args));
  }

  /** Had anything arrived before, it would stand before the marker. */
  async expectNothing(transport) {
    await this.senders[transport].send(MARKER);
    await this.expect("chat_message", "marker");
  }
}

// --- names ----------------------------------------------------------------------------------------

describe("names of events", () => {
  const NAMES = ["chat/message", "café", 'a"b', "back\\slash", "line\nbreak", "漢字", "rocket 🚀", "7"];
  const events = [...NAMES, "chat_message"].map((name) => ({ name, action: "broadcast" }));
  const room = new Room({ settings: STOPS_AT_ONCE, events }, [...NAMES, "chat_message"]);
  before(() => room.open());
  after(() => room.close());

  const escapeAll = (text) => `"${[...Array(text.length).keys()].map((at) => unit(text, at)).join("")}"`;
  const unit = (text, at) => `\\u${text.charCodeAt(at).toString(16).padStart(4, "0")}`;
  const WRITINGS = {
    "as JSON.stringify writes it": (name) => JSON.stringify(name),
    // python-socketio and many others
    "in ASCII": (name) => JSON.stringify(name).replace(/[^\x20-\x7e]/g, (one) => unit(one, 0)),
    // Android, Swift, PHP
    "with \\/": (name) => JSON.stringify(name).replaceAll("/", "\\/"),
    "all of it escaped": escapeAll,
    "all of it escaped, in capitals": (name) => escapeAll(name).replace(/[0-9a-f]{4}/g, (hex) => hex.toUpperCase()),
  };

  for (const transport of Object.keys(RAW)) {
    for (const [writing, write] of Object.entries(WRITINGS)) {
      it(
        `with a rule, ${writing}, by ${transport}`,
        { timeout },
        room.test(async () => {
          for (const name of NAMES) {
            await room.senders[transport].send(`42[${write(name)},{"text":"hi"}]`);
            await room.expect(name, { text: "hi" });
          }
          await room.expectNothing(transport);
        }),
      );
    }

    it(
      `with a rule and an attachment, by ${transport}`,
      { timeout },
      room.test(async () => {
        const attachment = transport === "polling" ? "bAQID" : Buffer.from([1, 2, 3]);
        await room.senders[transport].send('451-["chat\\/message",{"_placeholder":true,"num":0}]', attachment);
        await room.expect("chat/message", Buffer.from([1, 2, 3]));
        await room.expectNothing(transport);
      }),
    );

    it(
      `with a rule, as a number, by ${transport}`,
      { timeout },
      room.test(async () => {
        // Node's EventEmitter makes no difference between 7 and "7", nor do the clients.
        await room.senders[transport].send('42[7,"seven"]');
        await room.expect("7", "seven");
        await room.expectNothing(transport);
      }),
    );

    it(
      `without a rule are ignored, by ${transport}`,
      { timeout },
      room.test(async () => {
        const names = [
          '"no\\/such"',
          '"caf\\u00e9 au lait"',
          '"a\\"c"',
          '"\\\\"',
          '"\\ud83d"',
          '""',
          "8",
          "7.5",
          "-1",
          "1e3",
        ];
        for (const name of names) await room.senders[transport].send(`42[${name},"x"]`, `42[${name}]`);
        await room.expectNothing(transport);
      }),
    );
  }

  it(
    "without a rule are refused to those who ask",
    { timeout, skip: withoutHandlers },
    room.test(async () => {
      const link = await room.link();
      for (const name of ['"no\\/such"', '"caf\\u00e9 au lait"', "8"]) {
        link.send(`4217[${name},"x"]`);
        await link.expect('4317[{"ok":false,"error":"unknown_event"}]');
      }
    }),
  );
});

// --- arguments ------------------------------------------------------------------------------------

describe("arguments", () => {
  const room = new Room({ settings: STOPS_AT_ONCE });
  before(() => room.open());
  after(() => room.close());

  const SPACES = { "a space": " ", "a tab": "\t", "a line feed": "\n", "CR LF": "\r\n", several: " \t\n ", none: "" };

  for (const transport of Object.keys(RAW)) {
    for (const [name, space] of Object.entries(SPACES)) {
      // The JavaScript clients read white space there as an ack id, and call listeners with one argument more.
      it(
        `behind ${name}, by ${transport}`,
        { timeout },
        room.test(async () => {
          const sender = room.senders[transport];
          await sender.send(`42${space}["chat_message","x"]`);
          await room.expect("chat_message", "x");
          await sender.send(`42${space}[${space}"chat_message"${space},${space}{"a":${space}1}${space}]${space}`);
          await room.expect("chat_message", { a: 1 });
          await sender.send(`429${space}["chat_message","with an ack"]`);
          await room.expect("chat_message", "with an ack");
          const attachment = transport === "polling" ? "bAQID" : Buffer.from([1, 2, 3]);
          await sender.send(`451-${space}["chat_message",{"_placeholder":true,"num":0}]`, attachment);
          await room.expect("chat_message", Buffer.from([1, 2, 3]));
        }),
      );
    }
  }

  it(
    "arrive without white space before the list",
    { timeout },
    room.test(async () => {
      const [sender, recipient] = [await room.link(), await room.link()];
      sender.send('42 \n["chat_message","x"]');
      await recipient.expect('42["chat_message","x"]');
      await room.expect("chat_message", "x");
      sender.send('451-\t["chat_message",{"_placeholder":true,"num":0}]', Buffer.from([1]));
      await recipient.expect('451-["chat_message",{"_placeholder":true,"num":0}]', Buffer.from([1]));
      await room.expect("chat_message", Buffer.from([1]));
    }),
  );

  describe("with placeholders for attachments", () => {
    const GOOD = '{"_placeholder":true,"num":0}';
    const BAD = [
      '{"_placeholder":1,"num":0}',
      '{"_placeholder":"true","num":0}',
      '{"_placeholder":{},"num":0}',
      '{"_placeholder":[true],"num":0}',
      '{"num":0,"_placeholder":1}',
      '{"\\u005fplaceholder":1,"num":0}',
      '{"_placeholder":true}',
      '{"_placeholder":true,"num":1}',
      '{"_placeholder":true,"num":-1}',
      '{"_placeholder":true,"num":0.5}',
      '{"_placeholder":true,"num":"0"}',
      '{"_placeholder":true,"num":null}',
      '{"_placeholder":true,"num":99999999999999999999}',
      '[{"deep":[{"_placeholder":1,"num":0}]}]',
    ];

    // Python clients take any truthy one, and never hear again after one that is wrong; Node relays some of them and
    // closes the sender for others.
    for (const bad of BAD) {
      it(
        `${bad} is refused`,
        { timeout, skip: unlikeNode },
        room.test(async () => {
          const link = await room.link();
          for (const args of [`${GOOD},${bad}`, `${bad},${GOOD}`]) {
            link.send(`451-["chat_message",${args}]`, Buffer.from([1]));
            await link.expect('42["error",{"ok":false,"error":"malformed","event":"chat_message"}]');
            link.send(`451-5["chat_message",${args}]`, Buffer.from([1]));
            await link.expect('435[{"ok":false,"error":"malformed"}]');
          }
          link.send(MARKER);
          await link.expect(MARKER);
          await room.expect("chat_message", "marker");
        }),
      );
    }

    for (const value of ["false", "null"]) {
      it(
        `"_placeholder":${value} is a value as any other`,
        { timeout },
        room.test(async () => {
          const link = await room.link();
          link.send(`451-["chat_message",${GOOD},{"_placeholder":${value},"num":7}]`, Buffer.from([1]));
          await room.expect("chat_message", Buffer.from([1]), { _placeholder: JSON.parse(value), num: 7 });
        }),
      );
    }

    it(
      "without an attachment they are values as any other",
      { timeout },
      room.test(async () => {
        const link = await room.link();
        link.send('42["chat_message",{"_placeholder":true,"num":0},{"_placeholder":1}]');
        await room.expect("chat_message", { _placeholder: true, num: 0 }, { _placeholder: 1 });
      }),
    );
  });

  describe("with huge numbers", () => {
    const digits = (count) => "9".repeat(count);
    for (const [name, json] of [
      ["4301 digits", digits(4301)],
      ["100,000 digits, negative", `-${digits(100_000)}`],
      ["5000 digits, nested", `{"a":[1,{"b":${digits(5000)}}]}`],
    ]) {
      // Python raises where it reads more than 4300 digits. Node sends null for what is beyond its numbers.
      it(
        name,
        { timeout },
        room.test(async () => {
          const link = await room.link();
          link.send(`42["chat_message",${json}]`, MARKER);
          await everyone(room.clients, async (client) => {
            let { args } = await client.next();
            if (args[0] !== "marker") {
              const as = JSON.stringify(args);
              assert.equal(as, JSON.stringify([JSON.parse(json)]), `${client.name} got ${as.slice(0, 80)}`);
              ({ args } = await client.next());
            }
            assert.deepEqual(args, ["marker"], client.name);
          });
          // On the wire, which others read.
          for (;;) {
            const packet = await link.message();
            assert.ok(!/\d{4301}/.test(packet), `relayed as ${packet.slice(0, 80)}…`);
            if (packet === MARKER) break;
          }
        }),
      );
    }

    it(
      "with 4300 digits and fewer they are numbers",
      { timeout },
      room.test(async () => {
        const link = await room.link();
        link.send(`42["chat_message",${digits(300)},1e400,12345678901234567890]`);
        await everyone(room.clients, async (client) => {
          const { args } = await client.next();
          assert.deepEqual([args[0], args[2]], [1e300, 12345678901234567000], client.name);
        });
      }),
    );
  });
});

// --- leaving and coming back ----------------------------------------------------------------------

describe("DISCONNECT and CONNECT in one write", { skip: unlikeNode, concurrency: true }, () => {
  // Node reads the CONNECT before it has done the DISCONNECT, and closes the connection.
  const ROUNDS = 200;
  let server;
  before(async () => {
    const events = ["/", "/chat"].map((namespace) => ({ name: "server_message", namespace, action: "echo" }));
    server = await startServer({ settings: { ...STOPS_AT_ONCE, namespaces: "/,/chat" }, events });
  });
  after(() => server?.stop());

  for (const [namespace, prefix] of [
    ["/", ""],
    ["/chat", "/chat,"],
  ]) {
    it(`${ROUNDS} times over WebSocket, in ${namespace}`, { timeout }, async () => {
      const link = await WebSocketLink.connect(server.url);
      const ids = new Set();
      const connected = async () => {
        const packet = await link.message("CONNECT");
        assert.ok(packet.startsWith(`40${prefix}{"sid":"`), packet);
        ids.add(packet);
      };
      if (prefix) {
        link.send(`40${prefix}`);
        await connected();
      }
      for (let n = 0; n < ROUNDS; n++) {
        link.send(`41${prefix}`, `40${prefix}`);
        await connected();
      }
      assert.ok(ids.size >= ROUNDS, "every socket has an id of its own");
      link.send(`42${prefix}["server_message",1]`);
      await link.expect(`42${prefix}["server_message",1]`);
      link.close();
    });
  }

  it(`${ROUNDS} times, all at once`, { timeout }, async () => {
    const link = await WebSocketLink.connect(server.url);
    link.send(...Array.from({ length: ROUNDS }, () => ["41", "40"]).flat(), '42["server_message","end"]');
    for (let n = 0; n < ROUNDS; n++) assert.match(await link.message(`CONNECT ${n}`), /^40\{"sid":"/);
    await link.expect('42["server_message","end"]');
    link.close();
  });

  it("in one payload, by polling", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    for (let n = 0; n < 50; n++) {
      await polling.send("41", "40");
      assert.match(await polling.next(`CONNECT ${n}`), /^40\{"sid":"/);
    }
    await polling.send('42["server_message",1]');
    await polling.expect('42["server_message",1]');
  });
});

// --- size -----------------------------------------------------------------------------------------

describe("a message above the limit", () => {
  const LIMIT = 1_000_000;
  let server;
  before(async () => {
    server = await startServer({ settings: STOPS_AT_ONCE, admin: true });
  });
  after(() => server?.stop());

  /** A message of this many bytes. */
  const text = (length) => `42["server_message","${"x".repeat(length - 23)}"]`;
  const WAYS = {
    "in one frame": (link) => link.send(text(LIMIT + 1)),
    "in bytes": (link) => link.send('451-["server_message",{"_placeholder":true,"num":0}]', Buffer.alloc(LIMIT + 1)),
    "in many frames": (link) => {
      const parts = Array.from({ length: 11 }, (_, n) =>
        frame("x".repeat(LIMIT / 10), { opcode: n ? 0 : 1, fin: n === 10 }),
      );
      link.socket.write(Buffer.concat(parts));
    },
    // The head alone says that it is too large.
    announced: (link) => link.socket.write(frame(text(LIMIT + 1)).subarray(0, 100)),
  };

  for (const [way, send] of Object.entries(WAYS)) {
    it(`${way}: closed with 1009`, { timeout }, async () => {
      const link = await WebSocketLink.connect(server.url);
      send(link);
      await link.closed();
      assert.equal(link.closeCode, 1009);
    });
  }

  it("of the official client: closed with 1009", { timeout }, async () => {
    const client = await connect(server.url, { name: "v4 websocket", version: 4, transport: "websocket" });
    const gone = nextEvent(client.socket, "disconnect", "the client is disconnected");
    client.emit("server_message", "x".repeat(LIMIT));
    const [reason, { context }] = await gone;
    assert.deepEqual([reason, context.code], ["transport close", 1009]);
    client.close();
  });

  it("by polling is answered 413", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    // The server need not read all of it, and then the connection breaks.
    const answer = await polling.post(text(LIMIT + 1)).catch(({ code }) => ({ status: code }));
    assert.ok([413, "ECONNRESET", "EPIPE"].includes(answer.status), String(answer.status));
  });

  it("of the largest size is taken", { timeout }, async () => {
    const link = await WebSocketLink.connect(server.url);
    assert.equal(text(LIMIT).length, LIMIT);
    link.send(text(LIMIT));
    await link.expect(text(LIMIT));
    link.close();
  });

  it("has its own reason in log and metrics", { timeout, skip: unlikeNode }, async () => {
    const closed = () => server.metric("antiphon_gateway_sessions_closed_total", 'reason="too_large"');
    const before = await closed();
    const link = await WebSocketLink.connect(server.url);
    link.send(text(LIMIT + 1));
    await link.closed();
    await until(async () => (await closed()) === before + 1, "one more session is closed as too_large");
    await until(() => /too_large/.test(server.printed), "the log says too_large");
  });
});

// --- another parser -------------------------------------------------------------------------------

describe("a client with socket.io-msgpack-parser", () => {
  let server;
  beforeEach(async () => {
    server = await startServer({ settings: STOPS_AT_ONCE });
  });

  for (const transport of ["websocket", "polling"]) {
    it(`is refused by ${transport}, and the log says why`, { timeout }, async () => {
      const socket = IO[4](server.url, {
        parser: msgpackParser,
        transports: [transport],
        forceNew: true,
        reconnection: false,
      });
      let connects = 0;
      socket.on("connect", () => connects++);
      try {
        // It never had a namespace, so that it is the connection that tells of it.
        await nextEvent(socket.io, "close", "the connection ends");
        assert.equal(connects, 0);
        if (!REFERENCE) await until(() => /msgpack|MessagePack|binary/i.test(server.printed), "a reason in the log");
      } finally {
        socket.disconnect();
        await server.stop();
      }
    });
  }
});
