// What clients say when they connect, as others than the usual ones say it: revision, origin, subprotocol, namespace.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { TRANSPORTS, VOICES, connect, nextEvent, prepare, until } from "./clients.mjs";
import { Polling, WebSocketLink, assertRefused, assertSocketRefused, request } from "./raw.mjs";
import { STOPS_AT_ONCE, startServer, unlikeNode } from "./server.mjs";

const timeout = 30_000;

describe("the revision of Engine.IO", { concurrency: true }, () => {
  let server;
  before(async () => {
    server = await startServer({ settings: STOPS_AT_ONCE });
  });
  after(() => server?.stop());

  // Old clients for Swift and the ESP32 send none.
  for (const eio of ["", "EIO=&", "EIO=2&", "EIO=3&", "EIO=5&", "EIO=abc&", "EIO=04&"]) {
    it(`is 3 with ${eio ? eio.slice(0, -1) : "no EIO"}`, { timeout }, async () => {
      const query = `${eio}transport=polling`;
      const opened = await request(server.url, query);
      assert.equal(opened.status, 200, opened.body);
      assert.match(opened.body, /^\d+:0\{/);
      const { sid } = JSON.parse(opened.body.slice(opened.body.indexOf("{"), opened.body.indexOf("}") + 1));
      const connected = await request(server.url, `${query}&sid=${sid}`);
      assert.deepEqual([connected.status, connected.body], [200, "2:40"]);
      const link = await WebSocketLink.session(server.url, { query: `${eio}transport=websocket` });
      await link.expect("40");
      link.send("2");
      assert.equal(await link.next("a pong"), "3");
      link.send('42["server_message",1]');
      await link.expect('42["server_message",1]');
      link.close();
    });
  }

  it("must stay the same for a session", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    for (const eio of ["", "EIO=2&", "EIO=3&"]) {
      const query = `${eio}transport=polling&sid=${polling.sid}`;
      assertRefused(await request(server.url, query), 3, "Bad request");
      assertRefused(await request(server.url, query, { method: "POST", body: "4x" }), 3, "Bad request");
      const link = await WebSocketLink.open(server.url, query.replace("polling", "websocket"));
      assertSocketRefused(link, "Bad request");
    }
    await polling.send('42["server_message",1]');
    await polling.expect('42["server_message",1]');
  });

  it("an empty sid is none", { timeout }, async () => {
    const four = await request(server.url, "EIO=4&transport=polling&sid=");
    assert.deepEqual([four.status, four.body.slice(0, 2)], [200, "0{"]);
    const three = await request(server.url, "EIO=3&sid=&transport=polling");
    assert.match(three.body, /^\d+:0\{/);
    const link = await WebSocketLink.connect(server.url, { query: "EIO=4&sid=&transport=websocket" });
    link.send('42["server_message",1]');
    await link.expect('42["server_message",1]');
    link.close();
  });

  it("an unknown sid is refused, over either transport", { timeout }, async () => {
    assertRefused(await request(server.url, "EIO=4&transport=polling&sid=unknown"), 1, "Session ID unknown");
    const link = await WebSocketLink.open(server.url, "EIO=4&transport=websocket&sid=unknown");
    assertSocketRefused(link, "Session ID unknown");
  });
});

describe("a subprotocol of WebSocket", { concurrency: true }, () => {
  let server;
  before(async () => {
    server = await startServer({ settings: STOPS_AT_ONCE });
  });
  after(() => server?.stop());

  it("is echoed to version 4 with the option `protocols`: the first one", { timeout }, async () => {
    const voice = { name: "v4 websocket", version: 4, transport: "websocket" };
    const client = await connect(server.url, voice, { protocols: ["chat.v2", "chat.v1"] });
    assert.equal(client.socket.io.engine.transport.ws.protocol, "chat.v2");
    client.emit("server_message", "hello");
    await client.expect("server_message", "hello");
    client.close();
  });

  it("is echoed when version 4 upgrades", { timeout }, async () => {
    const voice = { name: "v4 upgrade", version: 4, transport: "upgrade" };
    const client = await connect(server.url, voice, { protocols: ["chat"] });
    assert.equal(client.socket.io.engine.transport.ws.protocol, "chat");
    client.close();
  });

  for (const [offered, echoed] of [
    ["chat", "chat"],
    ["b, a", "b"],
    ["b,a", "b"],
    [null, undefined],
  ]) {
    it(`${offered ?? "none"}: ${echoed ?? "none"} is echoed`, { timeout }, async () => {
      const headers = offered ? { "Sec-WebSocket-Protocol": offered } : {};
      const link = await WebSocketLink.connect(server.url, { headers });
      assert.equal(link.headers["sec-websocket-protocol"], echoed);
      link.close();
    });
  }
});

describe("a namespace with a query", { concurrency: true }, () => {
  let server;
  before(async () => {
    const namespaces = ["/", "/chat", "/quiet"];
    const events = namespaces.map((namespace) => ({ name: "chat_message", namespace, action: "broadcast" }));
    server = await startServer({ settings: { ...STOPS_AT_ONCE, namespaces: namespaces.join() }, events });
  });
  after(() => server?.stop());

  for (const transport of Object.keys(TRANSPORTS)) {
    it(`version 2 comes to it by ${transport}, and talks`, { timeout }, async () => {
      const sockets = [
        prepare(`${server.url}/chat?token=a%20b&room=1`, { version: 2, transport }),
        ...[2, 4].map((version) => prepare(`${server.url}/chat`, { version, transport: "websocket" })),
      ];
      // Who said something; other tests talk here, too.
      const heard = sockets.map((socket) => {
        const names = [];
        socket.on("chat_message", (name) => names.push(name));
        return names;
      });
      try {
        for (const socket of sockets) {
          const connected = nextEvent(socket, "connect", `a client by ${transport} connects`);
          socket.connect();
          await connected;
        }
        sockets[0].emit("chat_message", transport, "hello");
        await until(() => heard.every((names) => names.includes(transport)), `everyone hears ${transport}`);
      } finally {
        sockets.forEach((socket) => socket.disconnect());
      }
    });
  }

  it("is answered without its query", { timeout }, async () => {
    const link = await WebSocketLink.session(server.url, { query: "EIO=3&transport=websocket" });
    await link.expect("40");
    link.send("40/quiet?token=1,");
    await link.expect("40/quiet,");
    link.send('42/quiet,["chat_message",1]');
    await link.expect('42/quiet,["chat_message",1]');
    // As Node, which takes it off every packet.
    link.send('42/quiet?token=1,["chat_message",2]');
    await link.expect('42/quiet,["chat_message",2]');
    // Node has left only when this comes back.
    link.send("41/quiet,", '42["chat_message","left"]');
    await link.expect('42["chat_message","left"]');
    link.send("40/quiet?token=2");
    await link.expect("40/quiet,");
    link.send("40/nowhere?token=1,");
    assert.match(await link.message(), /^44\/nowhere,/);
    link.close();
  });
});

describe("with origins by name", { concurrency: true }, () => {
  const ALLOWED = ["https://app.example", "null", "file://"];
  let server;
  before(async () => {
    server = await startServer({ settings: { ...STOPS_AT_ONCE, "cors.allowed_origins": ALLOWED.join() }, admin: true });
  });
  after(() => server?.stop());

  const poll = (headers) => request(server.url, "EIO=4&transport=polling", { headers });
  const socket = (headers) => WebSocketLink.open(server.url, "EIO=4&transport=websocket", { headers });

  async function assertAllowed(headers) {
    const answer = await poll(headers);
    assert.equal(answer.status, 200, answer.body);
    const link = await socket(headers);
    assert.equal(link.status, 101, link.body);
    link.close();
    return answer;
  }

  for (const origin of ALLOWED) {
    it(`${origin} may connect, and a page of it may read the answer`, { timeout }, async () => {
      const { headers } = await assertAllowed({ Origin: origin });
      assert.equal(headers["access-control-allow-origin"], origin);
    });
  }

  it("clients without an origin may connect", { timeout }, () => assertAllowed({}));

  it("an origin that is the request's own host may connect", { timeout }, async () => {
    await assertAllowed({ Origin: server.url });
    await assertAllowed({ Host: "chat.example", Origin: "http://chat.example" });
    await assertAllowed({ Host: "chat.example:8443", Origin: "https://chat.example:8443" });
    // Behind a proxy that speaks TLS to the client.
    await assertAllowed({ Host: "chat.example", Origin: "https://chat.example" });
    await assertAllowed({ Host: "Chat.Example", Origin: "https://chat.example" });
  });

  it("others may not, and the log says so, with an end", { timeout, skip: unlikeNode }, async () => {
    const before = await server.metric("antiphon_gateway_refusals_total", 'reason="origin"');
    const refused = [
      { Origin: "https://other.example" },
      { Origin: "http://app.example" },
      { Host: "chat.example", Origin: "https://chat.example.other.example" },
      { Host: "chat.example", Origin: "https://xchat.example" },
      { Host: "chat.example:5000", Origin: "http://chat.example:5001" },
    ];
    for (const headers of refused) {
      const answer = await poll(headers);
      assert.equal(answer.status, 403, JSON.stringify(headers));
      assert.equal((await socket(headers)).status, 403, JSON.stringify(headers));
    }
    const many = 100;
    for (let n = 0; n < many; n++) await poll(refused[0]);
    const after = await server.metric("antiphon_gateway_refusals_total", 'reason="origin"');
    assert.equal(after - before, 2 * refused.length + many);
    await until(() => /origin/i.test(server.printed), "a line about the origin");
    const lines = server.printed.split("\n").filter((line) => /origin/i.test(line));
    assert.ok(lines.length <= 20, `${lines.length} lines for ${2 * refused.length + many} refusals`);
  });
});

describe("the usual clients, with their server among the origins by name", { concurrency: true }, () => {
  let server;
  before(async () => {
    server = await startServer({ settings: { ...STOPS_AT_ONCE, "cors.allowed_origins": "https://app.example" } });
  });
  after(() => server?.stop());

  for (const voice of VOICES) {
    it(`${voice.name} connects`, { timeout }, async () => {
      const client = await connect(server.url, voice, { extraHeaders: { Origin: server.url } });
      client.emit("server_message", "hello");
      await client.expect("server_message", "hello");
      client.close();
    });
  }
});
