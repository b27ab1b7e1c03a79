// What servers of a cluster ask of each other: an Antiphon node asks (examples/asks.rs), another one and a
// Node.js server answer. CLUSTER_REFERENCE=1 runs it with Node.js servers for Antiphon nodes (see cluster.mjs),
// and must pass, too:
//
//   CLUSTER_REFERENCE=1 node --test cluster-asks.test.mjs
//
// The example answers clients in the namespace /ask: emit("ask", what, options) is acknowledged with { ok } or
// { error }, about the namespace /.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Cast, RULES, SELECTIONS, assertSame, ids } from "./cast.mjs";
import { normalise } from "./clients.mjs";
import { Cluster, STAND_INS, noCluster, until } from "./cluster.mjs";
import { example } from "./server.mjs";

const timeout = 60_000;
/** How long the nodes wait for answers: here the tests have to wait, too, once. */
const REQUEST_TIMEOUT_MS = 2_000;
const AT_ONCE_MS = 1_500;
const SETTINGS = `
[redis]
request_timeout = "${REQUEST_TIMEOUT_MS}ms"
answer_on_own_channel = true
`;
const ADAPTER = { requestsTimeout: REQUEST_TIMEOUT_MS, publishOnSpecificResponseChannel: true };

const cluster = new Cluster();
const cast = new Cast();
let asker;

/** Runs io.<steps> on the Node.js server. */
const node = (...steps) => cluster.node.call(...steps);

/** The answer of the Antiphon node, whatever it is and whenever it comes. */
const answer = async (what, options = {}) => normalise(await asker.ask("ask", what, { timeout_ms: 5_000, ...options }));

/** What the Antiphon node answers, and at once. */
async function ask(what, options) {
  const started = Date.now();
  const got = await answer(what, options);
  const took = Date.now() - started;
  assert.ok(took < AT_ONCE_MS, `${what} took ${took} ms`);
  assert.deepEqual(Object.keys(got), ["ok"], `${what}: ${got.error}`);
  return got.ok;
}

const check = (name, body) => it(name, { timeout }, () => cast.play(body, node));

describe("an Antiphon node asks its cluster", { timeout: 5 * timeout, skip: noCluster }, () => {
  before(async () => {
    await cluster.start({ rules: RULES + SETTINGS, adapter: ADAPTER, program: example("asks") });
    await cast.enter(cluster);
    asker = cast.people[0].also("/ask");
    await asker.connected();
  });

  after(async () => {
    cast.leave();
    await cluster.stop();
  });

  check("how many servers there are", async () => {
    assert.equal(await ask("server_count"), 3);
  });

  check("and answers on the channel of who asks, if told to", async () => {
    const answers = await cast.request({ type: 1 }, 3);
    const own = answers.filter(({ channel }) => channel === "socket.io-response#/#raw#");
    assert.equal(own.length, 2, "the two Antiphon nodes answered there");
  });

  check("and answers serverSideEmit where Node does: on the channel of all, whatever it is told", async () => {
    const answers = await cast.request({ type: 6, data: ["probe", 1] }, 3);
    assert.deepEqual(answers.map(({ channel }) => channel), Array(3).fill("socket.io-response#/#"));
    await cast.expect(cast.these("n1 n2"), "probe", 1);
  });

  check("which rooms there are", async () => {
    const rooms = await ask("rooms");
    assert.equal(new Set(rooms).size, rooms.length, "each is named once");
    assertSame(rooms.filter((room) => !ids(cast.people).includes(room)), ["red", "blue", "only a"]);
    for (const one of cast.these("b1 n1")) {
      const room = `only ${one.name}`;
      assert.deepEqual(await one.ask("join", room), { ok: true });
      assert.ok((await ask("rooms")).includes(room), room);
      await node(["in", one.id], ["socketsLeave", room]);
      await cast.members(room, []);
      assert.ok(!(await ask("rooms")).includes(room), `no ${room}`);
    }
  });

  for (const [what, selection] of Object.entries(SELECTIONS)) {
    check(`which sockets there are: ${what}`, async () => {
      const { rooms, except, chosen } = cast.select(selection);
      const sockets = await ask("sockets", { rooms, except });
      assert.deepEqual(ids(sockets), ids(chosen));
      for (const one of chosen) {
        assertSame(sockets.find(({ id }) => id === one.id).rooms, [one.id, ...cast.roomsOf(one)], one.name);
      }
    });

    check(`to join, and to leave: ${what}`, async () => {
      const { rooms, except, chosen, others } = cast.select(selection);
      const [joined, left] = [cast.room(), cast.room()];
      assert.equal(await ask("join", { rooms, except, into: [joined] }), true);
      await cast.members(joined, chosen);
      assert.equal(await ask("join", { into: [left, "another room"] }), true);
      await cast.members(left, cast.people);
      assert.equal(await ask("leave", { rooms, except, into: [left] }), true);
      await cast.members(left, others);
      await cast.members("another room", cast.people);
      await node(["to", joined], ["emit", "say", "joined"]);
      await node(["to", left], ["emit", "say", "left"]);
      await cast.expect(chosen, "say", "joined");
      await cast.expect(others, "say", "left");
      assert.equal(await ask("leave", { into: [joined, left, "another room"] }), true);
      for (const room of [joined, left, "another room"]) await cast.members(room, []);
    });

    check(`for acknowledgements: ${what}`, async () => {
      const { rooms, except, chosen } = cast.select(selection);
      const args = ["well?", { list: [1, null] }];
      const names = await ask("emit_with_ack", { rooms, except, event: "question", args });
      assertSame(names, chosen.map(({ name }) => name));
      await cast.expect(chosen, "question", ...args);
    });
  }

  const answers = {
    "a text": "\u{1f600} \u00e9 \u2028",
    "a number": -1.5,
    null: null,
    "a structure": { z: 1, a: { list: [true], big: 4294967296 } },
    binary: Buffer.from([0, 1, 254, 255]),
    "binary in a structure": { files: [{ bytes: Buffer.from("first") }, Buffer.from("second")] },
    "64 kB": "x".repeat(65_536),
  };
  for (const [what, value] of Object.entries(answers)) {
    check(`for acknowledgements, answered with ${what}`, async () => {
      const people = cast.these("a2 b1 n1");
      for (const one of people) one.acknowledges = () => [value, "a second argument"];
      const got = await ask("emit_with_ack", { rooms: ids(people), event: "question", args: [] });
      for (const one of people) one.acknowledges = () => [one.name];
      assert.deepEqual(got, [value, value, value]);
      await cast.expect(people, "question");
    });
  }

  check("for acknowledgements, with bytes in the event", async () => {
    const args = [Buffer.from([0, 255]), { bytes: Buffer.from("more") }];
    assertSame(await ask("emit_with_ack", { event: "question", args }), cast.people.map(({ name }) => name));
    await cast.expect(cast.people, "question", ...args);
  });

  for (const silent of ["a2", "b1", "n1"]) {
    check(`for acknowledgements, and hears in time that ${silent} did not answer`, async () => {
      const [one] = cast.these(silent);
      one.acknowledges = null;
      const started = Date.now();
      const { ok, error } = await answer("emit_with_ack", { event: "question", args: [], timeout_ms: 500 });
      const took = Date.now() - started;
      one.acknowledges = () => [one.name];
      assert.equal(ok, undefined);
      assert.equal(typeof error, "string");
      assert.ok(took >= 450 && took < AT_ONCE_MS, `after ${took} ms`);
      await cast.expect(cast.people, "question");
    });
  }

  for (const what of ["a room", "ids", "exceptions"]) {
    check(`to disconnect sockets, by ${what}`, async () => {
      const room = cast.room();
      const mains = ["a", "b", "node"].map((server) => cast.invite(cluster[server].url, `${server} leaving`));
      const seconds = mains.map((main) => main.also("/second"));
      await Promise.all([...mains, ...seconds].map((one) => one.connected()));
      for (const main of mains) await main.ask("join", room);
      const meant = {
        "a room": { rooms: [room] },
        ids: { rooms: ids(mains) },
        exceptions: { except: ids(cast.people) },
      };
      assert.equal(await ask("disconnect", meant[what]), true);
      await Promise.all(mains.map((main) => main.left("io server disconnect")));
      await node(["of", "/second"], ["to", ids(seconds)], ["emit", "say", "still here"]);
      await cast.expect(seconds, "say", "still here");
      for (const second of seconds) assert.deepEqual(second.disconnects, [], second.name);
    });
  }

  check("a server that answers on the channel of who asked (publishOnSpecificResponseChannel)", async () => {
    const specific = await cluster.peer({ adapter: { publishOnSpecificResponseChannel: true } });
    try {
      const client = cast.invite(specific.url, "s1");
      await client.connected();
      await until(async () => (await ask("server_count")) === 4, "4 servers");
      assert.deepEqual(await client.ask("join", "only s"), { ok: true });
      assert.ok((await ask("rooms")).includes("only s"));
      assert.deepEqual(ids(await ask("sockets")), ids([...cast.people, client]));
      const names = await ask("emit_with_ack", { event: "question", args: [1] });
      assertSame(names, [...cast.people, client].map(({ name }) => name));
      await cast.expect([...cast.people, client], "question", 1);
    } finally {
      await specific.stop();
      await until(async () => (await ask("server_count")) === 3, "3 servers again");
    }
  });

  check("a hundred questions at a time, each answered with what it asked for", async () => {
    const questions = Array.from({ length: 100 }, (_, number) => cast.people[number % 6]);
    const got = await Promise.all(questions.map(({ id }) => ask("sockets", { rooms: [id] })));
    assert.deepEqual(got.map(ids), questions.map(({ id }) => [id]));
  });

  it("what it cannot know while Redis is away", { timeout, skip: STAND_INS && "Node.js waits for Redis" }, () =>
    cast.play(async () => {
      await cluster.redis.stop();
      for (const what of ["rooms", "sockets", "server_count", "join", "leave"]) {
        await until(async () => "error" in (await answer(what, { rooms: ["nobody here"], into: ["x"] })), `${what} fails`);
      }
      await cluster.redis.start();
      await until(async () => (await answer("sockets")).ok?.length === cast.people.length, "all sockets again");
      assert.equal(await ask("server_count"), 3);
    }, node),
  );

  // Last, because it does not come back.
  check("a node that is killed is waited for no longer than any, and no more afterwards", async () => {
    const started = Date.now();
    const [{ ok, error }] = await Promise.all([answer("sockets"), cluster.b.crash()]);
    assert.ok(typeof error === "string" || ok.length >= 4, "it answers or fails");
    assert.ok(Date.now() - started < REQUEST_TIMEOUT_MS + 1_000, "it waited longer than the setting says");
    cast.without("b");
    await until(async () => (await ask("server_count")) === 2, "2 servers");
    assert.deepEqual(ids(await ask("sockets")), ids(cast.people));
    const names = await ask("emit_with_ack", { event: "question", args: [1] });
    assertSame(names, cast.people.map(({ name }) => name));
    await cast.expect(cast.people, "question", 1);
  });
});
