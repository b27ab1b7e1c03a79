// What servers of a cluster ask of each other: a Node.js server and emitters ask, Antiphon nodes answer.
// CLUSTER_REFERENCE=1 runs it with Node.js servers for Antiphon nodes (see cluster.mjs), and must pass, too:
//
//   CLUSTER_REFERENCE=1 node --test cluster-requests.test.mjs
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Emitter } from "@socket.io/redis-emitter";
import { encode } from "notepack.io";
import { Cast, RULES, SELECTIONS, assertSame, ids } from "./cast.mjs";
import { VOICES, connectAll, nextEvent, normalise, prepare } from "./clients.mjs";
import { Cluster, isLinked, leaveClosingToTheServer, noCluster, until } from "./cluster.mjs";

const timeout = 60_000;
/** Far below the 5 s after which Node gives up on a server that does not answer; far above what it takes. */
const AT_ONCE_MS = 2_000;

const cluster = new Cluster();
const cast = new Cast();
let emitter;

/** Runs io.<steps> on the Node.js server. */
const node = (...steps) => cluster.node.call(...steps);
/** Runs several such calls there in one turn. */
const inOneTurn = async (...calls) => {
  for (const { error } of await cluster.node.all(...calls)) assert.equal(error, undefined);
};
/** Runs emitter.<steps>. */
const emits = (...steps) =>
  steps.reduce((target, [name, ...args]) => (typeof target[name] === "function" ? target[name](...args) : target[name]), emitter);

const onAntiphon = (people) => people.filter(({ name }) => !name.startsWith("n"));
const onNode = (people) => people.filter(({ name }) => name.startsWith("n"));

const check = (name, body, say = node) => it(name, { timeout }, () => cast.play(body, say));

async function atOnce(promise, what) {
  const started = Date.now();
  const value = await promise;
  const took = Date.now() - started;
  assert.ok(took < AT_ONCE_MS, `${what} took ${took} ms`);
  return value;
}

describe("requests in a mixed cluster", { timeout: 5 * timeout, skip: noCluster }, () => {
  before(async () => {
    await cluster.start({ rules: RULES });
    await cast.enter(cluster);
    emitter = new Emitter(cluster.client);
  });

  after(async () => {
    cast.leave();
    await cluster.stop();
  });

  // --- who is there -----------------------------------------------------------------------------------------

  for (const [what, selection] of Object.entries(SELECTIONS)) {
    check(`fetchSockets() finds ${what}`, async () => {
      const { steps, chosen } = cast.select(selection);
      const sockets = await atOnce(node(...steps, ["fetchSockets"]), "fetchSockets()");
      assert.deepEqual(ids(sockets), ids(chosen));
      for (const one of chosen) {
        const { rooms, data } = sockets.find(({ id }) => id === one.id);
        assertSame(rooms, [one.id, ...cast.roomsOf(one)], `the rooms of ${one.name}`);
        assert.deepEqual(data, {});
      }
    });
  }

  check("fetchSockets() in another namespace", async () => {
    assert.deepEqual(ids(await node(["of", "/second"], ["fetchSockets"])), ids(cast.second));
  });

  check("fetchSockets() tells of clients of every version and transport what Node tells, but no secrets", async () => {
    const extraHeaders = {
      "user-agent": "a test",
      "x-team": "blue",
      origin: "http://example.com",
      cookie: "session=SECRET",
      authorization: "Bearer SECRET",
    };
    const options = { auth: { token: "t", list: [1, null] }, query: { color: "light blue" }, extraHeaders };
    const before = Date.now();
    const clients = await connectAll(cluster.a.url, VOICES, options);
    cast.guests.push(...clients);
    const sockets = await node(["fetchSockets"]);
    for (const [number, { socket, name }] of clients.entries()) {
      const { version, transport } = VOICES[number];
      const { handshake, rooms, data } = sockets.find(({ id }) => id === socket.id) ?? assert.fail(`${name} is missing`);
      const { headers, time, address, xdomain, secure, issued, url, query, auth, ...rest } = handshake;
      assert.deepEqual(rest, {}, name);
      assert.deepEqual(rooms, [socket.id], name);
      assert.deepEqual(data, {}, name);
      assert.equal(headers.host, new URL(cluster.a.url).host, name);
      for (const header of ["user-agent", "x-team", "origin"]) assert.equal(headers[header], extraHeaders[header], name);
      assert.doesNotMatch(JSON.stringify(handshake), /SECRET/, name);
      assert.equal(typeof time, "string", name);
      assert.ok(Math.abs(Date.parse(time) - issued) < 2_000, `${name}: ${time} is ${issued}`);
      assert.ok(issued >= before - 1_000 && issued <= Date.now() + 1_000, `${name}: issued ${issued}`);
      assert.equal(address, "127.0.0.1", name);
      assert.equal(xdomain, true, name);
      assert.equal(secure, false, name);
      assert.ok(url.startsWith("/socket.io/?"), `${name}: ${url}`);
      assert.deepEqual({ ...query }, Object.fromEntries(new URL(url, cluster.a.url).searchParams), name);
      assert.equal(query.EIO, version === 2 ? "3" : "4", name);
      assert.equal(query.transport, transport === "websocket" ? "websocket" : "polling", name);
      assert.equal(query.color, "light blue", name);
      assert.deepEqual(auth, version === 2 ? {} : options.auth, name); // clients of version 2 have no such option
    }
  });

  check("fetchSockets() of a client without auth, origin and query", async () => {
    const { handshake } = (await node(["in", cast.these("a1")[0].id], ["fetchSockets"]))[0];
    assert.deepEqual(handshake.auth, {});
    assert.equal(handshake.xdomain, false);
    assert.deepEqual({ ...handshake.query }, { EIO: "4", transport: "websocket" });
  });

  check("fetchSockets() tells with what a client came to each namespace", async () => {
    const guest = cast.invite(cluster.a.url, "guest", { auth: { token: "first" } });
    const second = guest.also("/second", { auth: { token: "second" } });
    await Promise.all([guest, second].map((one) => one.connected()));
    for (const [namespace, { id }, token] of [["/", guest, "first"], ["/second", second, "second"]]) {
      const sockets = await node(["of", namespace], ["in", id], ["fetchSockets"]);
      assert.deepEqual(sockets.map(({ handshake }) => handshake.auth), [{ token }], namespace);
    }
  });

  check("fetchSockets() tells the query with which a client of version 2 came to a namespace", async () => {
    const voice = { name: "v2 websocket", version: 2, transport: "websocket" };
    const socket = prepare(`${cluster.a.url}/second?token=a%20b&list=1`, voice);
    cast.guests.push({ close: () => socket.disconnect() });
    const connected = nextEvent(socket, "connect", "the client comes to its namespace");
    socket.connect();
    await connected;
    const tokens = (await node(["of", "/second"], ["fetchSockets"])).map(({ handshake }) => handshake.auth);
    assert.deepEqual(
      tokens.filter((auth) => auth.token),
      [{ token: "a b", list: "1" }],
    );
    const inFirst = await node(["of", "/"], ["fetchSockets"]);
    assert.deepEqual(inFirst.filter(({ handshake }) => handshake.auth.token), [], "it is of that namespace alone");
  });

  check("allRooms() has every room, and every socket's own", async () => {
    const rooms = await atOnce(node(["of", "/"], ["adapter"], ["allRooms"]), "allRooms()");
    assertSame(rooms, ["red", "blue", "only a", ...ids(cast.people)]);
  });

  check("serverCount() counts Antiphon nodes", async () => {
    for (const namespace of ["/", "/second"]) {
      assert.equal(await node(["of", namespace], ["adapter"], ["serverCount"]), 3, namespace);
    }
  });

  // --- sockets join, leave, go ------------------------------------------------------------------------------

  for (const [what, selection] of Object.entries(SELECTIONS)) {
    check(`socketsJoin() for ${what}, in order with the broadcast after it`, async () => {
      const { steps, chosen } = cast.select(selection);
      const room = cast.room();
      await inOneTurn([...steps, ["socketsJoin", room]], [["to", room], ["emit", "say", "joined"]]);
      // A Node.js server does what it asks for when its request comes back to it: after it has emitted.
      await cast.expect(onAntiphon(chosen), "say", "joined");
      await cast.members(room, chosen);
      await node(["to", room], ["emit", "say", "all joined"]);
      await cast.expect(chosen, "say", "all joined");
    });

    check(`socketsLeave() for ${what}, in order with the broadcast after it`, async () => {
      const { steps, chosen, others } = cast.select(selection);
      const room = cast.room();
      await node(["socketsJoin", [room, "another room"]]);
      await cast.members(room, cast.people);
      await inOneTurn([...steps, ["socketsLeave", room]], [["to", room], ["emit", "say", "left"]]);
      await cast.expect([...onAntiphon(others), ...onNode(cast.people)], "say", "left");
      await cast.members(room, others);
      await node(["to", room], ["emit", "say", "all left"]);
      await cast.expect(others, "say", "all left");
      await node(["socketsLeave", [room, "another room"]]);
      await cast.members("another room", []);
    });
  }

  const names = {
    "of 16 characters, as an Antiphon id": "abcdefghijklmnop",
    "of 20 characters, as a Node.js id": "abcdefghijklmnopqrst",
    "with what divides a channel": "a#b##",
    "with what Redis takes for a pattern": "a*[b]?\\",
    "in Unicode": "\u{1f600} caf\u00e9 \u2028\"",
    "of no characters": "",
    "that is a number": 42,
    "of 300 bytes": "x".repeat(300),
  };
  for (const [what, room] of Object.entries(names)) {
    check(`a room with a name ${what}`, async () => {
      const chosen = cast.these("a1 b2 n1");
      await inOneTurn([["in", ids(chosen)], ["socketsJoin", room]], [["to", room], ["emit", "say", "joined"]]);
      await cast.expect(onAntiphon(chosen), "say", "joined");
      await cast.members(room, chosen);
      emits(["to", room], ["emit", "say", "by the emitter"]);
      await cast.expect(chosen, "say", "by the emitter");
      const answers = await node(["to", room], ["timeout", 5_000], ["emitWithAck", "question"]);
      assertSame(answers, chosen.map(({ name }) => name));
      await cast.expect(chosen, "question");
      await node(["socketsLeave", room]);
      await cast.members(room, []);
    });
  }

  for (const [what, say] of Object.entries({ "a Node.js server": node, "an emitter": emits })) {
    check(`a hundred joins, broadcasts and leaves of ${what} in one turn keep their order`, async () => {
      const people = cast.these("a1 b1");
      const calls = Array.from({ length: 100 }, (_, number) => [
        [["in", ids(people)], ["socketsJoin", `of ${number}`]],
        [["to", `of ${number}`], ["emit", "say", number]],
        [["in", `of ${number}`], ["socketsLeave", `of ${number}`]],
        [["to", `of ${number}`], ["emit", "say", "nobody is there"]],
      ]).flat();
      if (say === node) await inOneTurn(...calls);
      else calls.forEach((call) => emits(...call));
      for (let number = 0; number < 100; number++) await cast.expect(people, "say", number);
    }, say);
  }

  check("socketsJoin() in another namespace", async () => {
    const room = cast.room();
    await node(["of", "/second"], ["socketsJoin", room]);
    await until(async () => (await node(["of", "/second"], ["in", room], ["fetchSockets"])).length === 6, "all joined");
    await node(["of", "/second"], ["to", room], ["emit", "say", "second"]);
    await node(["to", room], ["emit", "say", "nobody is here"]);
    await cast.expect(cast.second, "say", "second");
  });

  for (const name of ["a1", "b2"]) {
    check(`a fetched socket of an Antiphon node takes emit, join, leave, and emit with ack (${name})`, async () => {
      const [one] = cast.these(name);
      const room = cast.room();
      const fetched = (...steps) => [["fetchSockets"], { id: one.id }, ...steps];
      await node(...fetched(["emit", "say", "to one", Buffer.from([1])]));
      await one.expect("say", "to one", Buffer.from([1]));
      await node(...fetched(["join", [room, "other"]]));
      await cast.members(room, [one]);
      await node(...fetched(["leave", room]));
      await cast.members(room, []);
      await cast.members("other", [one]);
      await node(...fetched(["leave", "other"]));
      await cast.members("other", []);
      assert.equal(await node(...fetched(["timeout", 5_000], ["emitWithAck", "question", "well?"])), name);
      await one.expect("question", "well?");
    });
  }

  // Who says good-bye, and how the room is emptied: the one must not overtake the other.
  const disconnects = {
    "disconnectSockets()": [node, ({ room }, close) => node(["in", room], ["disconnectSockets", close])],
    "disconnectSockets() by ids": [node, ({ mains }, close) => node(["in", ids(mains)], ["disconnectSockets", close])],
    "disconnectSockets() with exceptions": [
      node,
      (_, close) => node(["except", ids(cast.people)], ["except", "nobody"], ["disconnectSockets", close]),
    ],
    "disconnect() of fetched sockets": [
      node,
      ({ mains }, close) => Promise.all(mains.map(({ id }) => node(["fetchSockets"], { id }, ["disconnect", close]))),
    ],
    "the emitter's disconnectSockets()": [emits, ({ room }, close) => emits(["in", room], ["disconnectSockets", close])],
    "the emitter's disconnectSockets() with exceptions": [
      emits,
      (_, close) => emits(["except", ids(cast.people)], ["disconnectSockets", close]),
    ],
    "a request of the old form": [
      emits,
      ({ mains }, close) => Promise.all(mains.map(({ id: sid }) => cast.request({ type: 4, sid, ...(close && { close }) }, 1))),
    ],
  };
  for (const [what, [say, disconnect]] of Object.entries(disconnects)) {
    for (const close of [false, true]) {
      check(`${what} ${close ? "closes the connection" : "ends the namespace alone"}`, async () => {
        const room = cast.room();
        const mains = ["a", "b", "node"].map((server) => cast.invite(cluster[server].url, `${server} leaving`));
        const seconds = mains.map((main) => main.also("/second"));
        for (const { socket } of mains) leaveClosingToTheServer(socket);
        await Promise.all([...mains, ...seconds].map((one) => one.connected()));
        for (const main of mains) await main.ask("join", room);
        await say(["to", room], ["emit", "say", "good-bye"]);
        await disconnect({ room, mains }, close);
        await cast.expect(mains, "say", "good-bye");
        await Promise.all(mains.map((main) => main.left("io server disconnect")));
        await cast.members(room, []);
        if (close) {
          await Promise.all(seconds.map((second) => second.left("io server disconnect")));
          await until(() => mains.every(({ socket }) => !isLinked(socket)), "the servers close the connections");
        } else {
          await node(["of", "/second"], ["to", ids(seconds)], ["emit", "say", "still here"]);
          await cast.expect(seconds, "say", "still here");
          for (const main of mains) main.socket.connect(); // over the connection that is still there
          await Promise.all(mains.map((main) => main.connected()));
          await node(["to", ids(mains)], ["emit", "say", "back"]);
          await cast.expect(mains, "say", "back");
          for (const second of seconds) assert.deepEqual(second.disconnects, [], second.name);
        }
      });
    }
  }

  for (const close of [false, true]) {
    check(`disconnectSockets(${close}) for clients of every version and transport`, async () => {
      const clients = await connectAll(cluster.a.url, VOICES);
      cast.guests.push(...clients);
      for (const { socket } of clients) leaveClosingToTheServer(socket);
      const rooms = clients.map(({ socket }) => socket.id);
      await inOneTurn(
        [["to", rooms], ["emit", "chat_message", "good-bye"]],
        [["in", rooms], ["disconnectSockets", close]],
      );
      for (const client of clients) await client.expect("chat_message", "good-bye");
      await until(() => clients.every(({ disconnects }) => disconnects.length), "all are disconnected");
      const reasons = clients.map(({ name, disconnects }) => [name, ...disconnects]);
      assert.deepEqual(reasons, VOICES.map(({ name }) => [name, "io server disconnect"]));
      if (close) await until(() => clients.every(({ socket }) => !isLinked(socket)), "the server closes the connections");
      for (const { name, socket } of clients) assert.equal(isLinked(socket), !close, name);
    });
  }

  check("disconnectSockets() in another namespace ends that one alone", async () => {
    const mains = ["a", "b", "node"].map((server) => cast.invite(cluster[server].url, `${server} leaving`));
    const seconds = mains.map((main) => main.also("/second"));
    await Promise.all([...mains, ...seconds].map((one) => one.connected()));
    await node(["of", "/second"], ["in", ids(seconds)], ["disconnectSockets"]);
    await Promise.all(seconds.map((second) => second.left("io server disconnect")));
    await node(["to", ids(mains)], ["emit", "say", "still here"]);
    await cast.expect(mains, "say", "still here");
    for (const main of mains) assert.deepEqual(main.disconnects, [], main.name);
  });

  // --- acknowledgements -------------------------------------------------------------------------------------

  for (const [what, selection] of Object.entries(SELECTIONS)) {
    check(`emitWithAck() to ${what}`, async () => {
      const { steps, chosen } = cast.select(selection);
      const asked = node(...steps, ["timeout", 5_000], ["emitWithAck", "question", { bytes: Buffer.from([0, 255]) }]);
      assertSame(await atOnce(asked, "emitWithAck()"), chosen.map(({ name }) => name));
      await cast.expect(chosen, "question", { bytes: Buffer.from([0, 255]) });
    });
  }

  const answers = {
    "a text": ["\u{1f600} \u00e9 \u2028"],
    "a number": [-1.5],
    nothing: [],
    null: [null],
    false: [false],
    "a list": [["one", 2, [null]]],
    "a structure": [{ z: 1, a: { list: [true], big: 4294967296 } }],
    binary: [Buffer.from([0, 1, 254, 255])],
    "binary in a structure": [{ files: [{ bytes: Buffer.from("first") }, Buffer.from("second")], name: "x" }],
    "64 kB": ["x".repeat(65_536)],
    "more than one argument": ["the first counts", "the second does not"],
  };
  for (const [what, answer] of Object.entries(answers)) {
    check(`emitWithAck() answered with ${what}`, async () => {
      const people = cast.these("a1 b1");
      for (const one of people) one.acknowledges = () => answer;
      const got = await node(["in", ids(people)], ["timeout", 5_000], ["emitWithAck", "question", answer]);
      for (const one of people) one.acknowledges = () => [one.name];
      assert.deepEqual(normalise(got), [answer[0], answer[0]]);
      await cast.expect(people, "question", answer);
    });
  }

  check("emitWithAck() to clients of every version and transport", async () => {
    const clients = await connectAll(cluster.a.url, VOICES);
    cast.guests.push(...clients);
    for (const { socket, name } of clients) {
      socket.on("question", (bytes, done) => done({ name, bytes }));
    }
    const bytes = Buffer.from([7, 8, 9]);
    const rooms = clients.map(({ socket }) => socket.id);
    const got = normalise(await node(["in", rooms], ["timeout", 5_000], ["emitWithAck", "question", bytes]));
    const byName = (one, other) => one.name.localeCompare(other.name);
    assert.deepEqual(got.sort(byName), clients.map(({ name }) => ({ name, bytes })).sort(byName));
  });

  for (const silent of ["a1", "n1"]) {
    check(`emitWithAck() when ${silent} does not answer fails in time, with what the others answered`, async () => {
      const [one] = cast.these(silent);
      one.acknowledges = null;
      const asked = node(["timeout", 500], ["emitWithAck", "question"]);
      const failed = await atOnce(asked.then(() => assert.fail("it did not fail"), (error) => error), "emitWithAck()");
      one.acknowledges = () => [one.name];
      assert.match(failed.message, /timed out/);
      assertSame(failed.responses, cast.people.filter((other) => other !== one).map(({ name }) => name));
      await cast.expect(cast.people, "question");
    });
  }

  check("a hundred questions at a time, each answered with what it asked for", async () => {
    const asked = Array.from({ length: 100 }, (_, number) => cast.people[number % 6]);
    const questions = asked.map(({ id }, number) =>
      number % 2 ? [["in", id], ["fetchSockets"]] : [["in", id], ["timeout", 5_000], ["emitWithAck", "question", number]],
    );
    const outcomes = await cluster.node.all(...questions);
    for (const [number, { id, name }] of asked.entries()) {
      const { value } = outcomes[number];
      assert.deepEqual(number % 2 ? ids(value) : value, number % 2 ? [id] : [name]);
    }
    for (let number = 0; number < 100; number += 2) await asked[number].expect("question", number);
  });

  // --- server to server -------------------------------------------------------------------------------------

  for (const namespace of ["/", "/second"]) {
    check(`serverSideEmit() in ${namespace} is nothing to Antiphon's clients`, async () => {
      await node(["of", namespace], ["serverSideEmit", "probe", 1]);
    });

    check(`serverSideEmit() in ${namespace} with an acknowledgement has an answer from every server`, async () => {
      const asked = node(["of", namespace], ["serverSideEmitWithAck", "probe", 1]);
      const answers = await atOnce(asked, "serverSideEmitWithAck()");
      assert.equal(answers.length, 2);
      for (const answer of answers) assert.ok(answer === undefined || answer === null, `answered ${answer}`);
    });
  }

  // --- peers that answer on the channel of who asked --------------------------------------------------------

  check("publishOnSpecificResponseChannel", async () => {
    const specific = await cluster.peer({ adapter: { publishOnSpecificResponseChannel: true } });
    try {
      const client = cast.invite(specific.url, "s1");
      await client.connected();
      const servers = () => node(["of", "/"], ["adapter"], ["serverCount"]);
      await until(async () => (await servers()) === 4, "4 servers");
      for (const asker of [specific, cluster.node]) {
        assert.deepEqual(ids(await asker.call(["fetchSockets"])), ids([...cast.people, client]));
        const rooms = await asker.call(["of", "/"], ["adapter"], ["allRooms"]);
        for (const room of ["red", "only a", ...ids(cast.people), client.id]) assert.ok(rooms.has(room), room);
        assert.equal((await asker.call(["serverSideEmitWithAck", "probe", 1])).length, 3);
        const names = await asker.call(["timeout", 5_000], ["emitWithAck", "question", 1]);
        assertSame(names, [...cast.people, client].map(({ name }) => name));
        const other = asker === specific ? onNode(cast.people) : [client];
        await cast.expect(other, "probe", 1);
        await cast.expect([...cast.people, client], "question", 1);
      }
    } finally {
      await specific.stop();
      await until(async () => (await node(["of", "/"], ["adapter"], ["serverCount"])) === 3, "3 servers again");
    }
  });

  // --- requests of servers from before 2021 -----------------------------------------------------------------

  check("a request for the ids of sockets (type 0)", async () => {
    for (const [what, [rooms, , names]] of Object.entries(SELECTIONS).filter(([, [, except]]) => !except.length)) {
      const answers = await cast.request({ type: 0, rooms: cast.select([rooms, [], names]).rooms }, 3);
      assert.deepEqual(answers.flatMap(({ answer }) => answer.sockets).sort(), ids(cast.these(names)), what);
    }
  });

  check("a request for a socket to join and leave (types 2 and 3 with its id)", async () => {
    for (const one of cast.these("a1 b1 n1")) {
      const room = cast.room();
      for (const [type, members] of [[2, [one]], [3, []]]) {
        const [{ answer }] = await cast.request({ type, sid: one.id, room }, 1);
        assert.deepEqual(Object.keys(answer), ["requestId"]);
        await cast.members(room, members);
      }
    }
  });

  // What Node.js itself survives; the rest is for the tests of the wire.
  check("requests and answers that nobody understands are passed over", async () => {
    const publish = (channel, text) => cluster.client.publish(`socket.io-${channel}#/#`, text);
    for (const text of ["{", "", "{}", '{"type":99,"requestId":"x"}', '{"type":6,"uid":"x","data":[]}', '{"type":2,"sid":"x","room":"y"}']) {
      await publish("request", text);
    }
    for (const text of ["{", "{}", '{"requestId":"x"}', '{"requestId":"x","sockets":7}']) await publish("response", text);
    assert.deepEqual(ids(await atOnce(node(["fetchSockets"]), "fetchSockets()")), ids(cast.people));
  });

  // --- emitters ---------------------------------------------------------------------------------------------

  for (const [what, selection] of Object.entries(SELECTIONS)) {
    check(`the emitter: emit, socketsJoin and socketsLeave for ${what}`, async () => {
      const { steps, chosen, others } = cast.select(selection);
      const [joined, left] = [cast.room(), cast.room()];
      emits(...steps, ["emit", "say", "emitted", { bytes: Buffer.from([1]) }]);
      emits(...steps, ["socketsJoin", joined]);
      emits(["to", joined], ["emit", "say", "joined"]);
      emits(["socketsJoin", [left, "another room"]]);
      emits(...steps, ["socketsLeave", left]);
      emits(["to", left], ["emit", "say", "left"]);
      emits(["socketsLeave", [joined, left, "another room"]]);
      emits(["to", [joined, left, "another room"]], ["emit", "say", "nobody is there"]);
      await cast.expect(chosen, "say", "emitted", { bytes: Buffer.from([1]) });
      await cast.expect(chosen, "say", "joined");
      await cast.expect(others, "say", "left");
    }, emits);
  }

  const flags = {
    volatile: ["volatile"],
    "compress(true)": ["compress", true],
    "compress(false)": ["compress", false],
    'to("red").to("blue")': ["to", "red"],
  };
  for (const [what, step] of Object.entries(flags)) {
    check(`the emitter: ${what}`, async () => {
      const all = step[0] !== "to";
      emits(step, ...(all ? [] : [["to", "blue"]]), ["emit", "say", what]);
      await cast.expect(all ? cast.people : cast.these("a1 b1 b2 n1 n2"), "say", what);
    }, emits);
  }

  for (const namespace of ["/second", "second"]) {
    check(`the emitter: of("${namespace}")`, async () => {
      const room = cast.room();
      const [a, , b] = cast.second;
      emits(["of", namespace], ["emit", "say", "to all"]);
      await cast.expect(cast.second, "say", "to all");
      emits(["of", namespace], ["in", [a.id, b.id]], ["socketsJoin", room]);
      emits(["of", namespace], ["to", room], ["emit", "say", "to two"]);
      await cast.expect([a, b], "say", "to two");
    }, emits);
  }

  check("the emitter: serverSideEmit is for Node.js servers", async () => {
    emits(["serverSideEmit", "probe", "from the emitter"]);
    await cast.expect(onNode(cast.people), "probe", "from the emitter");
  }, emits);

  // Only Antiphon hears them: newer versions of Node's adapter do not.
  const old = {
    "to all": [{ type: 2, data: ["say", "old"], nsp: "/" }, { rooms: [], flags: {} }, "a1 a2 b1 b2"],
    "without a namespace": [{ type: 2, data: ["say", "old"] }, { rooms: [], flags: {} }, "a1 a2 b1 b2"],
    "to a room": [{ type: 2, data: ["say", "old"], nsp: "/" }, { rooms: ["red"], flags: {} }, "a1 b1"],
    "to two rooms": [{ type: 2, data: ["say", "old"], nsp: "/" }, { rooms: ["red", "blue"], flags: {} }, "a1 b1 b2"],
    "from PHP": [{ type: 2, data: ["say", "old"], nsp: "/" }, { rooms: "", flags: "" }, "a1 a2 b1 b2"],
    "from PHP with a room": [{ type: 2, data: ["say", "old"], nsp: "/" }, { rooms: ["blue"], flags: "" }, "b1 b2"],
    volatile: [{ type: 2, data: ["say", "old"], nsp: "/" }, { rooms: [], flags: { volatile: true } }, "a1 a2 b1 b2"],
    "with bytes": [{ type: 5, data: ["say", { b: Buffer.from([1, 2]) }], nsp: "/" }, { rooms: [], flags: { binary: true } }, "a1 a2 b1 b2"],
    "to a room of nobody": [{ type: 2, data: ["say", "old"], nsp: "/" }, { rooms: ["nobody here"], flags: {} }, ""],
  };
  const publishOld = (packet, opts) => cluster.client.publish("socket.io#emitter", encode([packet, opts]));
  for (const [what, [packet, opts, names]] of Object.entries(old)) {
    check(`an old emitter ${what}`, async () => {
      await publishOld(packet, opts);
      await cast.expect(cast.these(names), ...packet.data);
    }, emits);
  }

  check("an old emitter to another namespace, and to one socket", async () => {
    await publishOld({ type: 2, data: ["say", "second"], nsp: "/second" }, { rooms: [], flags: {} });
    await cast.expect(cast.second.slice(0, 4), "say", "second");
    const [a1] = cast.these("a1");
    await publishOld({ type: 2, data: ["say", "to one"], nsp: "/" }, { rooms: [a1.id], flags: {} });
    await a1.expect("say", "to one");
  }, emits);

  // --- servers that come back, and do not -------------------------------------------------------------------

  check("after Redis was away", async () => {
    await cluster.redis.stop();
    await cluster.redis.start();
    await until(async () => (await node(["of", "/"], ["adapter"], ["serverCount"])) === 3, "3 servers again");
    // Who hears again may not be able to answer yet.
    const present = async () => ids(await node(["fetchSockets"]).catch(() => [])).join();
    await until(async () => (await present()) === ids(cast.people).join(), "all sockets again");
    const names = await atOnce(node(["timeout", 5_000], ["emitWithAck", "question", 1]), "emitWithAck()");
    assertSame(names, cast.people.map(({ name }) => name));
    await cast.expect(cast.people, "question", 1);
  });

  // Last, because it does not come back.
  check("a node that is killed is waited for no longer than any, and is missed by nobody", async () => {
    const rejected = /timeout reached while waiting for fetchSockets response/;
    const started = Date.now();
    const [asked] = await Promise.all([
      node(["fetchSockets"]).catch(({ message }) => assert.match(message, rejected)),
      cluster.b.crash(),
    ]);
    assert.ok(Date.now() - started < 6_000, "it waited longer than for 5 s");
    if (asked) assert.ok(asked.length >= 4, "an answer has the sockets of the others");
    cast.without("b");
    const servers = () => node(["of", "/"], ["adapter"], ["serverCount"]);
    await until(async () => (await servers()) === 2, "2 servers");
    assert.deepEqual(ids(await atOnce(node(["fetchSockets"]), "fetchSockets()")), ids(cast.people));
    const names = await atOnce(node(["timeout", 5_000], ["emitWithAck", "question", 1]), "emitWithAck()");
    assertSame(names, cast.people.map(({ name }) => name));
    await cast.expect(cast.people, "question", 1);
  });
});
