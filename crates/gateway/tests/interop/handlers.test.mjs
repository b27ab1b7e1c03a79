// An application with socketioxide handlers (examples/handlers.rs) on a node of a cluster: its clients speak
// every version and transport, and a Node.js server and a plain node are in the cluster, too.
import assert from "node:assert/strict";
import { after, before, beforeEach, describe, it } from "node:test";
import { VOICES, connectAll, everyone } from "./clients.mjs";
import { Cluster, STAND_INS, noCluster, until } from "./cluster.mjs";
import { example } from "./server.mjs";

const timeout = 60_000;
const EVENTS = ["welcome", "said", "told", "chat_message", "error"];
const RULES = `
[[event]]
name = "chat_message"
action = "broadcast"

[[event]]
name = "join_by_rule"
action = "join"
`;

const skip = noCluster || (STAND_INS ? "about Rust handlers" : false);

describe("an application in Rust, on a cluster", { timeout: 3 * timeout, skip }, () => {
  const cluster = new Cluster();
  let clients = [];

  before(() => cluster.start({ rules: RULES, program: example("handlers") }));
  after(async () => {
    clients.forEach((client) => client.close());
    await cluster.stop();
  });
  beforeEach(async () => {
    clients.forEach((client) => client.close());
    await until(async () => (await cluster.node.call(["fetchSockets"])).length === 0, "the others have left");
    clients = await connectAll(cluster.a.url, VOICES, {}, EVENTS);
    // Clients of version 2 take the session's id for their socket's, and so does the server.
    await everyone(clients, (client) => client.expect("welcome", client.socket.id));
  });

  it("greets its clients, and answers them", { timeout }, async () => {
    for (const client of clients) {
      assert.deepEqual(await client.ask("join", "den"), [["den", "lobby"]]);
      assert.deepEqual(await client.ask("leave", "den"), [["lobby"]]);
    }
  });

  it("tells a room, the sender included, and others only", { timeout }, async () => {
    for (const sender of clients) {
      const { id } = sender.socket;
      const length = sender.ask("say", "hello");
      await everyone(clients, (client) => client.expect("said", { from: id, text: "hello" }));
      assert.deepEqual(await length, [5]);
    }
    const [first, ...others] = clients;
    await Promise.all(others.map((client) => client.ask("join", "den")));
    first.emit("tell", "den", "a secret");
    await everyone(others, (client) => client.expect("told", { from: first.socket.id, text: "a secret" }));
    first.emit("chat_message", "the next for everybody");
    await everyone(clients, (client) => client.expect("chat_message", "the next for everybody"));
  });

  it("has its rooms in common with rules and with other servers", { timeout }, async () => {
    const [first, second, ...others] = clients;
    assert.deepEqual(await first.ask("join_by_rule", "den"), [{ ok: true }]);
    assert.deepEqual(await second.ask("join", "den"), [["den", "lobby"]]);
    await cluster.node.call(["to", "den"], ["emit", "told", "from Node"]);
    await everyone([first, second], (client) => client.expect("told", "from Node"));
    await cluster.node.call(["in", "den"], ["socketsLeave", "den"]);
    await until(async () => !(await first.ask("join", "x"))[0].includes("den"), "an order of another server is carried out");
    await cluster.node.call(["except", first.socket.id], ["emit", "told", "not the first"]);
    await everyone([second, ...others], (client) => client.expect("told", "not the first"));
    const sockets = await cluster.node.call(["in", "lobby"], ["fetchSockets"]);
    assert.deepEqual(sockets.map(({ id }) => id).sort(), clients.map(({ socket }) => socket.id).sort());
  });

  it("hears of clients that another server sends away", { timeout }, async () => {
    const [first, ...others] = clients;
    const left = new Promise((resolve) => first.socket.once("disconnect", resolve));
    await cluster.node.call(["in", first.socket.id], ["disconnectSockets", true]);
    assert.match(await left, /^(io server disconnect|transport (close|error))$/);
    others[0].emit("say", "who is left?");
    await everyone(others, (client) => client.expect("said", { from: others[0].socket.id, text: "who is left?" }));
  });
});
