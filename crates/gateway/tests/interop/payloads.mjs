// What is sent through `chat_message`, as [what it is, ...arguments]. The arguments must arrive as they are.

export const BYTES = [Buffer.from([0, 1, 2, 0xfe, 0xff]), Buffer.from("second attachment")];

export const PAYLOADS = [
  ["text", "hello"],
  ["an object", { user: "bob", text: "hi", at: 1700000000123, tags: ["a", "b"], nested: { deep: [null, true] } }],
  ["an object whose keys are not sorted", { zebra: 1, apple: { z: 1, a: 2 }, mango: 3 }],
  ["several arguments", "room", { user: "bob" }, 42, [1, "two"], false, null],
  ["a list as the only argument", ["one", 2]],
  ["numbers", 0, -1, 1.5, 1e21, 5e-324, Number.MAX_SAFE_INTEGER],
  ["nested binary", [{ name: "a.bin", body: BYTES[0] }, { list: [BYTES[1], "text after it"] }]],
  ["binary among several arguments", "file", BYTES[0], { then: BYTES[1] }],
  ["empty binary", Buffer.alloc(0)],
  ["larger binary", Buffer.alloc(100_000, "0123456789abcdef\xff", "latin1")],
  ["unicode", "😀👩‍👩‍👧", "漢字かな交じり文", "Ünïcödé עברית", { "ключ🔑": "значение" }],
  // Not valid UTF-8 once decoded, so it must stay the escape it is sent as.
  ["a lone surrogate", "\ud83d", { lone: "a\udc00b" }],
  // Separators and escapes of JSON, Engine.IO and Socket.IO.
  ["text that looks like protocol", '42["chat_message"]', "a\u001eb\u0000c\u2028d", '"\\/\n\t', "4:40:1", "b4AAEC"],
  ["an object that looks like a packet", { type: 2, nsp: "/other", data: ["x"], num: 0 }],
  ["empty text", ""],
  ["no arguments"],
  ["null", null],
  ["empty containers", {}, [], [[]], [{}]],
  ["large text", "0123456789".repeat(90_000)],
  ["large text of wide characters", "漢".repeat(300_000)],
].map(([name, ...args]) => ({ name, args }));
