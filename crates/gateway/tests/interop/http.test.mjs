// The way in: what a browser asks before it connects, what clients send along, and what is refused.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { VOICES, connect, nextEvent, prepare } from "./clients.mjs";
import { startServer } from "./server.mjs";

const timeout = 60_000;
const ORIGIN = "http://chat.example";
let server;

before(async () => {
  server = await startServer();
});
after(() => server?.stop());

/** A request as a page from another origin makes it; the answer must be readable for that page. */
async function crossOrigin(query, { headers, ...options } = {}) {
  const response = await fetch(`${server.url}/socket.io/?transport=polling&${query}`, {
    ...options,
    headers: { Origin: ORIGIN, ...headers },
  });
  assert.equal(
    response.headers.get("access-control-allow-origin"),
    "*",
    `access-control-allow-origin on the answer ${response.status} to ${options.method ?? "GET"} ?${query}`,
  );
  return response;
}

describe("CORS is open", () => {
  it("for a whole polling session of EIO4", { timeout }, async () => {
    const opened = await crossOrigin("EIO=4");
    assert.equal(opened.status, 200);
    const text = await opened.text();
    assert.match(text, /^0\{/);
    const { sid, upgrades } = JSON.parse(text.slice(1));
    assert.deepEqual(upgrades, ["websocket"]);

    const session = `EIO=4&sid=${sid}`;
    const body = { method: "POST", headers: { "Content-Type": "text/plain;charset=UTF-8" } };
    assert.equal(await (await crossOrigin(session, { ...body, body: "40" })).text(), "ok");
    // The ping that some servers send first is not what this is about.
    let received = "";
    while (!/(^|\u001e)40\{/.test(received)) received += `\u001e${await (await crossOrigin(session)).text()}`;
    assert.equal(await (await crossOrigin(session, { ...body, body: "41\u001e1" })).text(), "ok");
  });

  it("for the handshake of EIO3", { timeout }, async () => {
    const text = await (await crossOrigin("EIO=3&b64=1")).text();
    assert.match(text, /^\d+:0\{/);
    // The length counts characters; behind the handshake follows the CONNECT of the namespace "/".
    const length = Number.parseInt(text, 10);
    const start = text.indexOf(":") + 1;
    assert.ok(JSON.parse(text.slice(start + 1, start + length)).sid);
  });

  it("for a refusal too: a page can read why", { timeout }, async () => {
    // Ids as long as those of Node, and as long as those of socketioxide: what clients still use after a restart.
    for (const sid of ["A".repeat(20), "A".repeat(16)]) {
      const response = await crossOrigin(`EIO=4&sid=${sid}`);
      assert.equal(response.status, 400);
      assert.deepEqual(await response.json(), { code: 1, message: "Session ID unknown" });
    }
  });

  it("for a preflight, with the headers that it asks for", { timeout }, async () => {
    const response = await crossOrigin("EIO=4", {
      method: "OPTIONS",
      headers: {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,x-app-version",
      },
    });
    assert.ok([200, 204].includes(response.status), `status ${response.status}`);
    const list = (name) => (response.headers.get(name) ?? "").toLowerCase().split(/\s*,\s*/);
    const methods = list("access-control-allow-methods");
    for (const method of ["get", "post"]) assert.ok(methods.includes(method) || methods.includes("*"), `${methods}`);
    const headers = list("access-control-allow-headers");
    assert.ok(headers.includes("x-app-version") || headers.includes("*"), `${headers}`);
    // Browsers do not take "*" for this one (Fetch, "CORS-unsafe request-header names").
    assert.ok(headers.includes("authorization"), `allowed headers: ${headers}`);
  });
});

for (const voice of VOICES) {
  describe(voice.name, () => {
    const connects = (what, options) =>
      it(`connects ${what}`, { timeout }, async () => {
        const client = await connect(server.url, voice, options);
        try {
          assert.equal(client.socket.io.engine.transport.query.EIO, voice.version === 2 ? 3 : 4, "Engine.IO protocol");
          client.emit("server_message", "hello");
          await client.expect("server_message", "hello");
        } finally {
          client.close();
        }
      });

    connects("from a web page of another origin", { extraHeaders: { Origin: ORIGIN } });
    connects("with a query", { query: { token: "ä b&c", room: "1" } });
    connects("with a compressed and an uncompressed message on offer", { perMessageDeflate: { threshold: 0 } });
    if (voice.version > 2) connects("with auth data", { auth: { token: "secret", nested: { n: [1, null] } } });

    it("is told that a namespace does not exist", { timeout }, async () => {
      const socket = prepare(`${server.url}/no-such-namespace`, voice);
      socket.on("connect", () => assert.fail("connected to a namespace that does not exist"));
      // Version 2 calls it `error`; a server of version 2 sends the text alone, later ones an object.
      const refused = nextEvent(socket, voice.version === 2 ? "error" : "connect_error", `${voice.name} is refused`);
      socket.connect();
      try {
        const [error] = await refused;
        assert.equal(typeof error === "string" ? error : error.message, "Invalid namespace");
        assert.equal(socket.connected, false);
      } finally {
        socket.disconnect();
        socket.io.engine.close();
      }
    });

    it("keeps its connection when one of two namespaces does not exist", { timeout }, async () => {
      const client = await connect(server.url, voice);
      try {
        const other = client.socket.io.socket("/no-such-namespace");
        const refused = nextEvent(other, voice.version === 2 ? "error" : "connect_error", `${voice.name} is refused`);
        other.connect();
        await refused;
        client.emit("server_message", "still here");
        await client.expect("server_message", "still here");
      } finally {
        client.close();
      }
    });
  });
}
