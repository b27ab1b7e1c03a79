// A mixed cluster: two Antiphon nodes and a Node.js server with @socket.io/redis-adapter share one Redis.
// Whoever sends, on whichever server, everybody meant gets it: once, with its arguments, in order.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Emitter } from "@socket.io/redis-emitter";
import { Cluster, Listener, STAND_INS, noCluster, until } from "./cluster.mjs";

const timeout = 60_000;
const RULES = `
[[event]]
name = "chat_message"
action = "broadcast"

[[event]]
name = "to_others"
action = "broadcast"
to = "others"

[[event]]
name = "join"
action = "join"

[[event]]
name = "say"
action = "room"
`;

const cluster = new Cluster();
let emitter, people;

const everyone = () => Object.values(people ?? {}).flat();

/** Everybody but `missing` gets this next, and nobody anything else before it. */
const all = (event, missing = []) =>
  Promise.all(everyone().filter((one) => !missing.includes(one)).map((one) => one.expect(...event)));

/** Runs io.<calls> on the Node.js server. */
const onNode = (...call) => cluster.node.call(...call);

const PAYLOADS = {
  text: ["hello"],
  "several arguments": ["one", 2, { three: [null, true, 1.5, -7, 4294967296] }],
  "no argument": [],
  unicode: ["\u{1f600} \u4e2d\u6587 \u00e9 \u2028", { "cl\u00e9": "\u{1f680}" }],
  "keys in no order": [{ z: 1, a: { y: 2, b: 3 } }],
  binary: [{ file: Buffer.from([0, 1, 254, 255]), list: ["x", Buffer.from("second")] }],
  "64 kB": ["x".repeat(65_536)],
};

describe("a mixed cluster", { timeout, skip: noCluster }, () => {
  before(async () => {
    await cluster.start({ rules: RULES });
    emitter = new Emitter(cluster.client);
    people = {};
    for (const name of ["a", "b", "node"]) {
      const { url } = cluster[name];
      people[name] = [Listener.open(url, `${name} 1`), Listener.open(url, `${name} 2`)];
      await Promise.all(people[name].map((one) => one.connected()));
    }
  });

  after(async () => {
    for (const one of everyone()) one.socket.disconnect();
    await cluster.stop();
  });

  for (const from of ["a", "b", "node"]) {
    for (const [what, args] of Object.entries(PAYLOADS)) {
      it(`chat_message with ${what} from a client of ${from} reaches everyone once`, { timeout }, async () => {
        people[from][0].socket.emit("chat_message", ...args);
        await all(["chat_message", ...args]);
      });
    }

    it(`to_others from a client of ${from} spares its sender`, { timeout }, async () => {
      const sender = people[from][0];
      sender.socket.emit("to_others", from);
      await all(["to_others", from], [sender]);
      sender.socket.emit("chat_message", "after");
      await all(["chat_message", "after"]);
    });

    it(`a room has members everywhere; say from ${from}`, { timeout }, async () => {
      const room = `room of ${from}`;
      const members = [people.a[0], people.b[0], people.node[0]];
      for (const member of members) assert.deepEqual(await member.ask("join", room), { ok: true });
      people[from][1].socket.emit("say", room, "members", 1);
      await Promise.all(members.map((member) => member.expect("say", "members", 1)));
      people[from][1].socket.emit("chat_message", "after");
      await all(["chat_message", "after"]);
    });

    it(`300 messages from ${from} keep their order everywhere`, { timeout }, async () => {
      for (let number = 0; number < 300; number++) people[from][0].socket.emit("chat_message", from, number);
      for (let number = 0; number < 300; number++) await all(["chat_message", from, number]);
    });
  }

  it("Node's io.emit, to, several rooms, except and volatile reach Antiphon's clients", { timeout }, async () => {
    const [a, b, node] = [people.a[0], people.b[0], people.node[0]];
    for (const member of [a, b]) await member.ask("join", "red");
    for (const member of [b, node]) await member.ask("join", "blue");
    await onNode(["emit", "chat_message", "io.emit", { bytes: Buffer.from([9]) }]);
    await all(["chat_message", "io.emit", { bytes: Buffer.from([9]) }]);
    await onNode(["to", "red"], ["emit", "say", "red"]);
    await Promise.all([a, b].map((one) => one.expect("say", "red")));
    await onNode(["to", ["red", "blue"]], ["emit", "say", "both, once"]);
    await Promise.all([a, b, node].map((one) => one.expect("say", "both, once")));
    await onNode(["to", ["red", "blue"]], ["except", "blue"], ["emit", "say", "red alone"]);
    await a.expect("say", "red alone");
    await onNode(["except", "red"], ["emit", "chat_message", "not red"]);
    await all(["chat_message", "not red"], [a, b]);
    await onNode(["volatile"], ["emit", "chat_message", "volatile"]);
    await all(["chat_message", "volatile"]);
    await onNode(["to", a.socket.id], ["emit", "say", "to one"]);
    await a.expect("say", "to one");
    await onNode(["except", b.socket.id], ["emit", "chat_message", "not to one"]);
    await all(["chat_message", "not to one"], [b]);
  });

  it("the emitter reaches everyone, rooms and single sockets", { timeout }, async () => {
    const a = people.a[0];
    emitter.emit("chat_message", "emitter", { bytes: Buffer.from([1, 2]) });
    await all(["chat_message", "emitter", { bytes: Buffer.from([1, 2]) }]);
    emitter.to("red").except("blue").emit("say", "by the emitter");
    await a.expect("say", "by the emitter");
    emitter.to(a.socket.id).emit("say", "to one");
    await a.expect("say", "to one");
    emitter.volatile.emit("chat_message", "volatile");
    await all(["chat_message", "volatile"]);
  });

  it("goes on without Redis, says so, and comes back by itself", { timeout, skip: STAND_INS }, async () => {
    const { redis, a, b } = cluster;
    await redis.stop();
    await until(async () => !(await a.readyz()).conditions.bus, "the node notices");
    const answer = await people.a[0].ask("chat_message", "alone");
    assert.deepEqual(answer, { ok: true, scope: "local" });
    await Promise.all(people.a.map((one) => one.expect("chat_message", "alone")));
    await redis.start();
    for (const node of [a, b]) await until(async () => (await node.readyz()).conditions.bus, "the node is back");
    assert.deepEqual(await people.a[0].ask("chat_message", "together"), { ok: true });
    await Promise.all([...people.a, ...people.b].map((one) => one.expect("chat_message", "together")));
    for (const one of [...people.a, ...people.b]) assert.deepEqual(one.disconnects, [], `${one.name} stayed`);
  });
});
