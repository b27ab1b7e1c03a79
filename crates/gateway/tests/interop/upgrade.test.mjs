// From polling to WebSocket, step by step: what a session is while it upgrades, and after an upgrade that fails.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { until, within } from "./clients.mjs";
import { Polling, WebSocketLink, assertRefused } from "./raw.mjs";
import { STOPS_AT_ONCE, startServer, unlikeNode } from "./server.mjs";

const timeout = 30_000;
let server;

before(async () => {
  server = await startServer({ settings: STOPS_AT_ONCE });
});
after(() => server?.stop());

const echo = (argument) => `42["server_message",${JSON.stringify(argument)}]`;

async function socketFor({ sid }) {
  const link = await WebSocketLink.open(server.url, `EIO=4&transport=websocket&sid=${sid}`);
  assert.equal(link.status, 101, link.body);
  return link;
}

async function probe(link) {
  link.send("2probe");
  assert.equal(await link.next("the answer to the probe"), "3probe");
}

/** The session works by polling. */
async function assertPolls(polling, n) {
  await polling.send(echo(n));
  await polling.expect(echo(n));
}

/** The session can be upgraded, and works then. */
async function assertUpgrades(polling, n) {
  let link;
  // Until the server has noticed that the WebSocket before is gone, this is a second one, and closed.
  await until(async () => {
    link = await socketFor(polling);
    link.send("2probe");
    return (await link.next().catch(() => "closed")) === "3probe";
  }, "an upgrade");
  link.send("5", echo(n));
  await link.expect(echo(n));
  link.close();
}

/** The connection has ended, by whomever. */
const ended = (link, what) => within(link.ended, what);

describe("an upgrade that fails leaves the session as it was", { concurrency: true }, () => {
  const FAILURES = {
    "cut after the 101": (link) => link.cut(),
    "reset after the 101": (link) => link.socket.resetAndDestroy(),
    "closed after the 101": (link) => link.sendFrame("", { opcode: 8 }),
    "cut after the probe": async (link) => {
      await probe(link);
      link.cut();
    },
    "closed after the probe": async (link) => {
      await probe(link);
      link.sendFrame("", { opcode: 8 });
    },
    "a message in place of the probe": (link) => link.send(echo("too soon")),
    "a ping in place of the probe": (link) => link.send("2"),
    "an Engine.IO close in place of the probe": (link) => link.send("1"),
    "no Engine.IO packet in place of the probe": (link) => link.send("abc"),
    "bytes in place of the probe": (link) => link.send(Buffer.from([1, 2, 3])),
    "a message in place of the upgrade": async (link) => {
      await probe(link);
      link.send(echo("too soon"));
    },
  };

  for (const [failure, fail] of Object.entries(FAILURES)) {
    it(failure, { timeout }, async () => {
      const polling = await Polling.connect(server.url);
      const link = await socketFor(polling);
      await fail(link);
      await ended(link, "the WebSocket that failed ends");
      await assertPolls(polling, 1);
      await assertPolls(polling, 2);
      await assertUpgrades(polling, 3);
    });
  }

  it("a poll that waits meanwhile goes on waiting", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    const [waiting] = await polling.beginPoll();
    const link = await socketFor(polling);
    link.cut();
    await ended(link, "the WebSocket ends");
    await polling.send(echo("still there"));
    assert.equal((await waiting).body, echo("still there"));
  });

  it("before it is connected to a namespace, too", { timeout }, async () => {
    const polling = await Polling.open(server.url);
    const link = await socketFor(polling);
    link.cut();
    await polling.send("40");
    assert.match(await polling.next("CONNECT"), /^40\{"sid":"/);
    await assertPolls(polling, 1);
  });

  it("again and again", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    for (let n = 0; n < 20; n++) {
      const link = await socketFor(polling);
      if (n % 2) link.send("2probe");
      link.cut();
      await assertPolls(polling, n);
    }
    await assertUpgrades(polling, 20);
  });

  it("after the time for it, without a word from the client", { timeout }, async () => {
    const impatient = await startServer({ settings: { ...STOPS_AT_ONCE, "session.upgrade_timeout": "200ms" } });
    try {
      const polling = await Polling.connect(impatient.url);
      const silent = await WebSocketLink.open(impatient.url, `EIO=4&transport=websocket&sid=${polling.sid}`);
      await ended(silent, "a WebSocket without a probe ends");
      const probed = await WebSocketLink.open(impatient.url, `EIO=4&transport=websocket&sid=${polling.sid}`);
      await probe(probed);
      await ended(probed, "a WebSocket without an upgrade ends");
      await assertPolls(polling, 1);
    } finally {
      await impatient.stop();
    }
  });
});

describe("while an upgrade is under way", { concurrency: true }, () => {
  it("another WebSocket for the session is closed, and the first one upgrades", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    const first = await socketFor(polling);
    const second = await socketFor(polling);
    await ended(second, "the second WebSocket is closed");
    assert.notEqual(second.closeCode, undefined, "with a close frame");
    await probe(first);
    const third = await socketFor(polling);
    await ended(third, "the third WebSocket is closed");
    first.send("5", echo(1));
    await first.expect(echo(1));
    await ended(await socketFor(polling), "a WebSocket after the upgrade is closed");
    first.send(echo(2));
    await first.expect(echo(2));
    first.close();
  });

  it("of two WebSockets at once one upgrades", { timeout }, async () => {
    for (let n = 0; n < 20; n++) {
      const polling = await Polling.connect(server.url);
      const links = await Promise.all([socketFor(polling), socketFor(polling)]);
      const outcomes = links.map(async (link) => {
        link.send("2probe");
        const answer = await Promise.race([link.ended.then(() => "closed"), link.next().catch(() => "closed")]);
        return answer === "3probe" ? link : null;
      });
      const open = (await Promise.all(outcomes)).filter(Boolean);
      assert.equal(open.length, 1, `${open.length} of two WebSockets are open, round ${n}`);
      open[0].send("5", echo(n));
      await open[0].expect(echo(n));
      open[0].close();
    }
  });

  it("a poll that waits is answered, so that the client can stop polling", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    const [waiting] = await polling.beginPoll();
    const link = await socketFor(polling);
    await probe(link);
    assert.deepEqual([(await waiting).status, (await waiting).body], [200, "6"]);
    assert.deepEqual(await polling.poll(), ["6"], "and the next one, too");
    link.send("5", echo(1));
    await link.expect(echo(1));
    link.close();
  });

  it("before the probe polls are held and answered as ever", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    const link = await socketFor(polling);
    const [waiting] = await polling.beginPoll();
    await polling.send(echo(1));
    assert.equal((await waiting).body, echo(1));
    await probe(link);
    link.send("5", echo(2));
    await link.expect(echo(2));
    link.close();
  });

  it("what is sent by polling is answered by polling", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    const link = await socketFor(polling);
    await probe(link);
    await polling.send(echo(1));
    let packet;
    do packet = await polling.next();
    while (packet === "6");
    assert.equal(packet, echo(1));
    link.send("5", echo(2));
    await link.expect(echo(2));
    link.close();
  });

  it("what waits for a poll that does not come goes over the WebSocket, in order", { timeout }, async () => {
    const polling = await Polling.connect(server.url);
    const link = await socketFor(polling);
    await probe(link);
    for (let n = 0; n < 40; n++) await polling.send(echo(n));
    link.send("5", echo(40));
    for (let n = 0; n <= 40; n++) await link.expect(echo(n));
    link.close();
  });

  it("a poll that waits when the client upgrades without it is answered", { timeout }, async () => {
    for (let n = 0; n < 10; n++) {
      const polling = await Polling.connect(server.url);
      const [waiting] = await polling.beginPoll();
      const link = await socketFor(polling);
      link.send("2probe", "5", echo(n));
      await link.expect("3probe", echo(n));
      // Node ends its polling with a close packet here; that is of the transport, not of the session.
      const { status, body } = await waiting;
      assert.deepEqual([status, ["1", "6"].includes(body)], [200, true], body);
      assertRefused(await polling.get(), 3, "Bad request");
      assertRefused(await polling.post(echo(n)), 3, "Bad request");
      link.send(echo("after"));
      await link.expect(echo("after"));
      link.close();
    }
  });
});

describe("a poll that comes together with the upgrade packet", { concurrency: true }, () => {
  // On connections of their own either may be the first.
  const ROUNDS = 10;
  const AT_ONCE = 10;
  // So that a session that is forgotten is noticed; but not so short that a ping comes before the upgrade.
  const SHORT_PINGS = { "session.ping_interval": "1500ms", "session.ping_timeout": "200ms" };
  let own;
  before(async () => {
    own = await startServer({ settings: { ...STOPS_AT_ONCE, ...SHORT_PINGS } });
  });
  after(() => own?.stop());

  for (const [name, packets] of [
    ["and the probe", ["2probe", "5"]],
    ["behind the probe", ["5"]],
  ]) {
    for (const talks of [true, false]) {
      it(`${name} does no harm to a client that ${talks ? "talks" : "is silent"}`, { timeout }, async () => {
        const sessions = [];
        for (let round = 0; round < ROUNDS; round++) {
          sessions.push(...(await Promise.all(Array.from({ length: AT_ONCE }, () => together(packets, talks)))));
        }
        // No pong from anybody.
        for (const { polling, link, polled } of sessions) {
          await within(link.ended, `a ping timeout ends the session whose poll got ${polled.status} ${polled.body}`);
          assertRefused(await polling.get(), 1, "Session ID unknown");
        }
      });
    }
  }

  async function together(packets, talks) {
    const polling = await Polling.connect(own.url);
    const link = await WebSocketLink.open(own.url, `EIO=4&transport=websocket&sid=${polling.sid}`);
    if (packets.length === 1) await probe(link);
    for (const packet of packets) link.send(packet);
    const polled = await polling.get();
    if (polled.status === 200) assert.ok(["1", "6"].includes(polled.body), polled.body);
    else assertRefused(polled, 3, "Bad request");
    if (packets.length === 2) await link.expect("3probe");
    if (talks) {
      link.send(echo("upgraded"));
      await link.expect(echo("upgraded"));
    }
    return { polling, link, polled };
  }
});

describe("a WebSocket that says transport=polling", { skip: unlikeNode, concurrency: true }, () => {
  // As the Dart client on every device opens it when nobody has set its transports.
  it("is a WebSocket, for EIO4", { timeout }, async () => {
    const link = await WebSocketLink.connect(server.url, { query: "EIO=4&transport=polling" });
    assert.deepEqual(link.handshake.upgrades, []);
    link.send(echo(1));
    await link.expect(echo(1));
    link.close();
  });

  it("is a WebSocket, for EIO3", { timeout }, async () => {
    const link = await WebSocketLink.session(server.url, { query: "EIO=3&transport=polling" });
    assert.deepEqual(link.handshake.upgrades, []);
    await link.expect("40");
    link.send("2");
    assert.equal(await link.next("a pong"), "3");
    link.send(echo(1));
    await link.expect(echo(1));
    link.close();
  });
});
