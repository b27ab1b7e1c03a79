// What is sent arrives: every version over every transport as the sender, all of them as receivers.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { Choir, VOICES, everyone } from "./clients.mjs";
import { BYTES, PAYLOADS } from "./payloads.mjs";
import { antiphonOnly, startServer, withoutHandlers } from "./server.mjs";

const timeout = 60_000;
let server;
let choir;

before(async () => {
  server = await startServer();
  choir = new Choir(server.url);
});

after(async () => {
  choir?.close();
  await server?.stop();
});

/** Sends all the messages in one go; everyone must get each of them, in this order, and nothing between. */
async function inOrder(sender, all, messages) {
  for (const args of messages) sender.emit("chat_message", ...args);
  await everyone(all, async (client) => {
    for (const args of messages) await client.expect("chat_message", ...args);
  });
}

const numbered = (count, args) => Array.from({ length: count }, (_, n) => args(n));

for (const voice of VOICES) {
  describe(`sender ${voice.name}`, () => {
    const test = (name, body, options = {}) => it(name, { timeout, ...options }, () => choir.with(voice, body));

    for (const { name, args } of PAYLOADS) {
      test(`chat_message with ${name} reaches everyone, itself included`, async (sender, all) => {
        sender.emit("chat_message", ...args);
        await everyone(all, (client) => client.expect("chat_message", ...args));
      });
    }

    // Wide characters, because they tell bytes, characters and UTF-16 units apart where a polling
    // payload with several packets is cut into its parts by length.
    test("200 messages keep their order", (sender, all) =>
      inOrder(sender, all, numbered(200, (n) => [n, `nr ${n} 😀 漢字`])));

    test("200 messages keep their order, with and without attachments", (sender, all) =>
      inOrder(sender, all, numbered(200, (n) => (n % 5 ? [n, "é"] : [n, { a: BYTES[0], b: [BYTES[1]] }]))));

    // The negative needs no waiting: had the others got it, it would stand before the marker.
    test("server_message comes back to its sender alone", async (sender, all) => {
      for (const { args } of PAYLOADS) {
        sender.emit("server_message", ...args);
        await sender.expect("server_message", ...args);
      }
      sender.emit("chat_message", "marker");
      await everyone(all, (client) => client.expect("chat_message", "marker"));
    });

    test("chat_message and server_message keep their order towards the sender", async (sender, all) => {
      for (let n = 0; n < 50; n++) {
        sender.emit("chat_message", n);
        sender.emit("server_message", n, BYTES[0]);
      }
      await everyone(all, async (client) => {
        for (let n = 0; n < 50; n++) {
          await client.expect("chat_message", n);
          if (client === sender) await client.expect("server_message", n, BYTES[0]);
        }
      });
    });

    test("an event without a rule is ignored", async (sender, all) => {
      sender.emit("no_such_event", "text", { b: BYTES[0] });
      sender.emit("chat_message", "marker");
      await everyone(all, (client) => client.expect("chat_message", "marker"));
    });

    const antiphon = { skip: antiphonOnly };
    for (const event of ["chat_message", "server_message"]) {
      test(
        `${event} is acknowledged`,
        async (sender, all) => {
          const receivers = event === "chat_message" ? all : [sender];
          for (const args of [["text"], [], [{ a: 1 }, "two"], ["with bytes", { b: BYTES[0] }]]) {
            assert.deepEqual(await sender.ask(event, ...args), [{ ok: true }]);
            await everyone(receivers, (client) => client.expect(event, ...args));
          }
        },
        antiphon,
      );
    }

    test(
      "many acknowledgements find their own question",
      async (sender, all) => {
        const asks = numbered(50, (n) => (n % 2 ? sender.ask("chat_message", n) : sender.ask("no_such_event", n)));
        const answers = await Promise.all(asks);
        answers.forEach(([answer], n) => assert.equal(answer.ok, n % 2 === 1, `answer to question ${n}`));
        await everyone(all, async (client) => {
          for (let n = 1; n < 50; n += 2) await client.expect("chat_message", n);
        });
      },
      { skip: withoutHandlers },
    );

    test(
      "an event without a rule is refused in its acknowledgement",
      async (sender, all) => {
        const refusal = [{ ok: false, error: "unknown_event" }];
        assert.deepEqual(await sender.ask("no_such_event"), refusal);
        assert.deepEqual(await sender.ask("no_such_event", "text", { b: BYTES[0] }), refusal);
        sender.emit("chat_message", "marker");
        await everyone(all, (client) => client.expect("chat_message", "marker"));
      },
      { skip: withoutHandlers },
    );
  });
}
