// Coming and going: the script of the app this server was made for, restarts, upgrades, farewells.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import {
  Choir,
  Client,
  IO,
  RECONNECT_DEADLINE_MS,
  VERSIONS,
  VOICES,
  connect,
  connectAll,
  everyone,
  nextEvent,
  prepare,
} from "./clients.mjs";
import { startServer } from "./server.mjs";

const timeout = 90_000;

/** Stops the server and starts it again on its port; every client must come back, and by itself. */
async function restart(server, clients, whileAway = () => {}) {
  const gone = clients.map(({ socket, name }) => nextEvent(socket, "disconnect", `${name} notices the shutdown`));
  await server.stop();
  for (const [n, [reason]] of (await Promise.all(gone)).entries()) {
    // The clients take that reason as final and never come back.
    assert.notEqual(reason, "io server disconnect", `${clients[n].name}: reason of the disconnect`);
  }
  const back = clients.map(({ socket, name }) =>
    nextEvent(socket, "connect", `${name} reconnects by itself`, RECONNECT_DEADLINE_MS),
  );
  whileAway();
  await server.start();
  await Promise.all(back);
}

describe("the app", { concurrency: true }, () => {
  for (const version of VERSIONS) {
    it(`v${version}: connects, talks, leaves, comes back, survives a restart`, { timeout }, async () => {
      const server = await startServer();
      const socket = IO[version](server.url, { transports: ["websocket"], autoConnect: false });
      const app = new Client(socket, `v${version} app`); // listens to both events, once and for all
      const connected = () => nextEvent(socket, "connect", `${app.name} connects`);
      const talk = async (text) => {
        app.emit("chat_message", text);
        app.emit("server_message", { text });
        await app.expect("chat_message", text);
        await app.expect("server_message", { text });
      };
      try {
        assert.equal(socket.connected, false, "autoConnect: false");
        const first = connected();
        socket.connect();
        await talk("sent before the connection stands");
        await first;
        const firstId = socket.id;
        await talk("hello");

        socket.disconnect();
        assert.deepEqual(app.disconnects, ["io client disconnect"]);
        const second = connected();
        socket.connect();
        await second;
        assert.notEqual(socket.id, firstId, "a new connection has a new id");
        await talk("hello again");

        // Versions 2 and 3, when reopened in the same turn, report the end of the old connection only now
        // ("forced close"); what counts is what the server causes.
        const before = app.disconnects.length;
        await restart(server, [app], () => app.emit("chat_message", "sent while the server was away"));
        await app.expect("chat_message", "sent while the server was away");
        // A doubled listener would leave a second copy of each in front of the next.
        await talk("after the restart");
        await talk("and once more");
        assert.equal(app.disconnects.length, before + 1, `disconnects: ${app.disconnects}`);
      } finally {
        app.close();
        await server.stop();
      }
    });
  }

  it("everyone comes back after a restart, over every transport", { timeout }, async () => {
    const server = await startServer();
    let all = [];
    const talk = async (text) => {
      for (const sender of all) {
        sender.emit("chat_message", text, sender.name);
        await everyone(all, (client) => client.expect("chat_message", text, sender.name));
      }
    };
    try {
      all = await connectAll(server.url, VOICES, { reconnection: true });
      await talk("before");
      await restart(server, all);
      await talk("after");
      await restart(server, all);
      await talk("after the second");
    } finally {
      all.forEach((client) => client.close());
      await server.stop();
    }
  });
});

describe("with one server", () => {
  let server;
  before(async () => {
    server = await startServer();
  });
  after(() => server?.stop());

  /** Keeps a few numbered messages under way until `until` has happened, and a while longer. */
  async function talk(talker, until) {
    let sent = 0;
    let end = Infinity;
    const stop = () => (end = sent + 30);
    until.then(stop, stop);
    for (let heard = 0; heard < end; heard++) {
      while (sent < Math.min(heard + 8, end)) talker.emit("chat_message", sent++);
      await talker.expect("chat_message", heard);
    }
    await until;
    return sent;
  }

  for (const version of VERSIONS) {
    it(`v${version}: what it sends and gets while it upgrades keeps its order`, { timeout }, async () => {
      const listener = await connect(server.url, VOICES.at(-3)); // v4 websocket
      const voice = { name: `v${version} upgrade`, version, transport: "upgrade" };
      const client = new Client(prepare(server.url, voice), voice.name);
      try {
        client.socket.connect();
        const upgraded = nextEvent(client.socket.io.engine, "upgrade", `${voice.name} upgrades to WebSocket`);
        const sent = await talk(client, upgraded);
        assert.equal(client.transport, "websocket");
        for (let n = 0; n < sent; n++) await listener.expect("chat_message", n);
      } finally {
        client.close();
        listener.close();
      }
    });
  }

  it("who joins a running conversation misses nothing from its first message on", { timeout }, async () => {
    const talker = await connect(server.url, VOICES.at(-3));
    const joining = connectAll(server.url, [...VOICES, ...VOICES]);
    try {
      const sent = await talk(talker, joining);
      await everyone(await joining, async (client) => {
        let { args } = await client.next();
        for (let n = args[0] + 1; n < sent; n++) await client.expect("chat_message", n);
      });
    } finally {
      talker.close();
      (await joining.catch(() => [])).forEach((client) => client.close());
    }
  });

  for (const voice of VOICES) {
    it(`${voice.name}: leaves and returns, and nobody else notices`, { timeout }, async () => {
      const choir = new Choir(server.url);
      try {
        await choir.with(voice, async (leaver, all) => {
          const others = all.filter((client) => client !== leaver);
          const [witness] = others;
          leaver.emit("chat_message", "goodbye");
          await everyone(all, (client) => client.expect("chat_message", "goodbye"));
          await leaver.leave();
          assert.deepEqual(leaver.disconnects, ["io client disconnect"]);
          assert.equal(leaver.socket.connected, false);
          witness.emit("chat_message", "it is gone");
          await everyone(others, (client) => client.expect("chat_message", "it is gone"));

          const connected = nextEvent(leaver.socket, "connect", `${voice.name} returns`);
          leaver.socket.connect();
          await connected;
          witness.emit("chat_message", "it is back");
          // Had it been sent what was said in between, that would come first.
          await everyone(all, (client) => client.expect("chat_message", "it is back"));
          leaver.emit("chat_message", "hello again");
          await everyone(all, (client) => client.expect("chat_message", "hello again"));
          others.forEach((client) => assert.deepEqual(client.disconnects, [], client.name));
        });
      } finally {
        choir.close();
      }
    });
  }
});
