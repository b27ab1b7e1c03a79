// Who is there when requests are tested: two clients of each server of a cluster, in rooms, with every one of
// them also in the namespace /second.
import assert from "node:assert/strict";
import { DEADLINE_MS } from "./clients.mjs";
import { Listener, until } from "./cluster.mjs";

// A server that answers nothing would cost a deadline in each of many tests.
const PATIENCE_MS = 6 * DEADLINE_MS;

/** The configuration of the Antiphon nodes. */
export const RULES = `
namespaces = ["/", "/second", "/ask"]

[[event]]
name = "join"
action = "join"

[[event]]
name = "join"
namespace = "/second"
action = "join"
`;

const ROOMS = { red: "a1 b1 n1", blue: "b1 b2 n2", "only a": "a2" };

/** What can be selected: rooms, exceptions (`#a1` is the id of a1's socket), and who that is. */
export const SELECTIONS = {
  everyone: [[], [], "a1 a2 b1 b2 n1 n2"],
  "a room": [["red"], [], "a1 b1 n1"],
  "two rooms, one socket in both": [["red", "blue"], [], "a1 b1 b2 n1 n2"],
  "a room without another": [["red"], ["blue"], "a1 n1"],
  "everyone without a room": [[], ["blue"], "a1 a2 n1"],
  "everyone without two rooms": [[], ["red", "blue"], "a2"],
  "one socket": [["#a1"], [], "a1"],
  "a socket of each server": [["#a2", "#b2", "#n2"], [], "a2 b2 n2"],
  "everyone without one socket": [[], ["#b1"], "a1 a2 b2 n1 n2"],
  "a room without one socket": [["red"], ["#a1"], "b1 n1"],
  "a room with members on one server": [["only a"], [], "a2"],
  "a room with no members": [["nobody here"], [], ""],
};

export const ids = (sockets) => sockets.map(({ id }) => id).sort();

/** As `Array.includes`, for whole sets. */
export const assertSame = (got, want, what) => assert.deepEqual([...got].sort(), [...want].sort(), what);

export class Cast {
  /** Clients of one test: whatever can be closed. */
  guests = [];
  #spentOnFailuresMs = 0;
  #fences = 0;
  #rooms = 0;
  #requests = 0;

  async enter(cluster) {
    this.cluster = cluster;
    const servers = { a: cluster.a, b: cluster.b, n: cluster.node };
    this.people = Object.entries(servers).flatMap(([letter, { url }]) =>
      [1, 2].map((number) => Listener.open(url, `${letter}${number}`)),
    );
    this.second = this.people.map((one) => one.also("/second"));
    await Promise.all(this.people.map((one) => this.#settleIn(one)));
    await Promise.all(this.second.map((one) => one.connected()));
    await until(async () => (await cluster.node.call(["of", "/"], ["adapter"], ["serverCount"])) === 3, "3 servers");
  }

  async #settleIn(one) {
    await one.connected();
    for (const room of this.roomsOf(one)) assert.deepEqual(await one.ask("join", room), { ok: true });
  }

  leave() {
    for (const one of this.people ?? []) one.close();
  }

  /** A client that goes after the test. */
  invite(url, name, options) {
    const guest = Listener.open(url, name, options);
    this.guests.push(guest);
    return guest;
  }

  /** And waits until nobody sees them any more. */
  async #dismissGuests() {
    if (!this.guests.length) return;
    for (const guest of this.guests.splice(0)) guest.close();
    for (const [namespace, people] of [["/", this.people], ["/second", this.second]]) {
      const present = async () => ids(await this.cluster.node.call(["of", namespace], ["fetchSockets"])).join();
      await until(async () => (await present()) === ids(people).join(), `no guests in ${namespace}`);
    }
  }

  /** The clients with these names: "a1 n2". */
  these(names) {
    return names.split(" ").filter(Boolean).map((name) => this.people.find((one) => one.name === name));
  }

  /** Forgets the clients of a server that is no more. */
  without(letter) {
    const stays = ({ name }) => !name.startsWith(letter);
    for (const one of this.people) if (!stays(one)) one.close();
    this.people = this.people.filter(stays);
    this.second = this.second.filter(stays);
  }

  /** The rooms that it joined. */
  roomsOf({ name }) {
    return Object.keys(ROOMS).filter((room) => ROOMS[room].split(" ").includes(name));
  }

  /** A selection with the ids of today. */
  select([rooms, except, names]) {
    const named = (room) => (room.startsWith("#") ? this.these(room.slice(1))[0].id : room);
    const chosen = this.these(names);
    const others = this.people.filter((one) => !chosen.includes(one));
    [rooms, except] = [rooms.map(named), except.map(named)];
    // As somebody writes it: io.in(rooms).except(others), without what is not needed.
    const steps = [...(rooms.length ? [["in", rooms]] : []), ...(except.length ? [["except", except]] : [])];
    return { rooms, except, steps, chosen, others };
  }

  /** The name of a room that has never been used. */
  room() {
    return `room ${++this.#rooms}`;
  }

  async expect(people, ...event) {
    await Promise.all(people.map((one) => one.expect(...event)));
  }

  /** Waits until these are the members of a room, as far as the Node.js server hears. */
  async members(room, people) {
    const wanted = ids(people).join();
    const got = async () => ids(await this.cluster.node.call(["in", room], ["fetchSockets"])).join();
    await until(async () => (await got()) === wanted, `the members of ${room} are ${people.map((one) => one.name)}`);
  }

  /** Publishes a request about / as a server called `raw`, and waits for as many answers, which are `{ channel, answer }`. */
  async request(request, count) {
    const requestId = `raw ${++this.#requests}`;
    const answers = [];
    const subscriber = await this.cluster.redis.client();
    try {
      await subscriber.pSubscribe("socket.io-response#/#*", (text, channel) => {
        const answer = text.startsWith("{") ? JSON.parse(text) : {};
        if (answer.requestId === requestId) answers.push({ channel, answer });
      });
      await this.cluster.client.publish("socket.io-request#/#", JSON.stringify({ uid: "raw", requestId, ...request }));
      await until(() => answers.length >= count, `${count} answers to ${JSON.stringify(request)}`);
    } finally {
      await subscriber.disconnect();
    }
    return answers;
  }

  /** A test that ends with everybody having got what it says, and nothing else. `say` is who spoke last in it. */
  async play(body, say) {
    const spent = this.#spentOnFailuresMs;
    assert.ok(spent < PATIENCE_MS, `given up: the tests that failed before this one took ${spent} ms`);
    const started = Date.now();
    try {
      await this.#settle();
      await body();
      await this.#quiet(say);
      await this.#dismissGuests();
    } catch (error) {
      await this.#dismissGuests().catch(() => {}); // the first error is the one to report
      this.#spentOnFailuresMs += Date.now() - started;
      throw error;
    }
  }

  /** Undoes what a test that failed has left: strays, and clients that had to go. */
  async #settle() {
    const gone = [...this.people, ...this.second].filter((one) => !one.socket.connected);
    for (const one of gone) one.socket.connect();
    await Promise.all(gone.map((one) => this.#settleIn(one)));
    for (const one of [...this.people, ...this.second]) one.disconnects.splice(0);
    const fence = this.#fence((...steps) => this.cluster.node.call(...steps));
    await Promise.all([...this.people, ...this.second].map((one) => one.skipTo("fence", fence)));
  }

  /** Nobody has got anything that no test expected, and nobody was disconnected. */
  async #quiet(say) {
    const fence = this.#fence(say);
    await this.expect([...this.people, ...this.second], "fence", fence);
    for (const one of [...this.people, ...this.second]) assert.deepEqual(one.disconnects, [], `${one.name} stayed`);
  }

  #fence(say) {
    const fence = ++this.#fences;
    for (const namespace of ["/", "/second"]) say(["of", namespace], ["emit", "fence", fence]);
    return fence;
  }
}
