/**
 * WebSocket frames by the byte that break the protocol, and floods of frames that do not.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { connect as dial } from "node:net";

import { DETAIL_BYTES_MAX, RECEIPTS_MAX } from "../../engine/model.ts";
import { ask, push, until } from "../support/harness.ts";
import {
  BINARY,
  CLOSE,
  frameOf,
  type FrameOptions,
  handshake,
  MORE,
  openRaw,
  PING,
  say,
  sayFrames,
  TEXT,
} from "../support/raw.ts";
import { heap, MEBIBYTE, pere, putUnderAttack, unharmed } from "./attack.ts";

putUnderAttack();

describe("frames that break the protocol", () => {
  const MESSAGE_BYTES_MAX = RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024);
  const wrong = (opcode: number, payload: string | Buffer, options: FrameOptions = {}): Buffer[] => [
    frameOf(opcode, payload, options),
  ];
  const code = (number: number, reason = ""): Buffer =>
    Buffer.concat([Buffer.from([number >> 8, number & 0xff]), Buffer.from(reason, "latin1")]);
  const part = "x".repeat(100_000);

  const attacks: readonly (readonly [string, readonly Buffer[], number])[] = [
    ["an unmasked frame", wrong(TEXT, "[]", { masked: false }), 1002],
    ...[1, 2, 4, 7].map((reserved) => [`reserved bits ${reserved}`, wrong(TEXT, "[]", { reserved }), 1002] as const),
    ["a compressed message that was not agreed on", wrong(TEXT, Buffer.from("aa560000", "hex"), { reserved: 4 }), 1002],
    ...[3, 7, 11, 15].map((opcode) => [`opcode ${opcode}`, wrong(opcode, "x"), 1002] as const),
    ["a continuation of nothing", wrong(MORE, "[]"), 1002],
    ["a message inside a message", [frameOf(TEXT, "[", { fin: false }), frameOf(TEXT, "]")], 1002],
    ["a ping in parts", wrong(PING, "p", { fin: false }), 1002],
    ["a ping of 126 bytes", wrong(PING, "x".repeat(126)), 1002],
    ["a close of 126 bytes", wrong(CLOSE, code(1000, "x".repeat(124))), 1002],
    ["a close of one byte", wrong(CLOSE, Buffer.from([3])), 1002],
    ["a close whose reason is no UTF-8", wrong(CLOSE, code(1000, "\xff")), 1007],
    ...[0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535].map(
      (number) => [`a close with ${number}`, wrong(CLOSE, code(number)), 1002] as const,
    ),
    ["text that is no UTF-8", wrong(TEXT, Buffer.from([0xff, 0xfe])), 1007],
    [
      "text that is no UTF-8, in parts",
      [frameOf(TEXT, Buffer.from([0xc3]), { fin: false }), frameOf(MORE, Buffer.from([0x28]))],
      1007,
    ],
    ...[63n, 53n, 32n].map(
      (bits) => [`a length of 2^${bits}`, wrong(TEXT, "x", { announced: 1n << bits }), 1009] as const,
    ),
    ["a message a byte too large", wrong(TEXT, `${" ".repeat(MESSAGE_BYTES_MAX - 1)}[]`), 1009],
    [
      "parts that are too large together",
      [frameOf(TEXT, part, { fin: false }), ...Array.from({ length: 52 }, () => frameOf(MORE, part, { fin: false }))],
      1009,
    ],
  ];
  test.each(attacks)("%s: closed with its code, and no other message is sent", async (_what, frames, code) => {
    const heard = await sayFrames(pere.url, "/feed/frames?device=d", [...frames, frameOf(TEXT, "[]")]);
    expect([heard.code, heard.closed]).toEqual([code, true]);
    expect(heard.text).not.toContain('"recorded"');
  });

  test.each([
    [
      "parts with a ping between",
      [frameOf(TEXT, "[", { fin: false }), frameOf(PING, "p"), frameOf(MORE, "]")],
      '"recorded":0',
    ],
    [
      "a thousand parts of nothing",
      [
        frameOf(TEXT, "[]", { fin: false }),
        ...Array.from({ length: 1_000 }, () => frameOf(MORE, "", { fin: false })),
        frameOf(MORE),
      ],
      '"recorded":0',
    ],
    [
      "a character in two parts",
      [frameOf(TEXT, Buffer.from([0x22, 0xc3]), { fin: false }), frameOf(MORE, Buffer.from([0xa9, 0x22]))],
      "a receipt is a JSON object",
    ],
    ["a length in more bits than it needs", [frameOf(TEXT, "[]", { bits: 64 })], '"recorded":0'],
    ["a message that just fits", [frameOf(TEXT, `${" ".repeat(MESSAGE_BYTES_MAX - 2)}[]`)], '"recorded":0'],
    ["bytes", [frameOf(BINARY, "[]")], "not binary frames"],
    ["an empty message", [frameOf(TEXT, "")], "it is empty"],
    ["a word that is no JSON", [frameOf(TEXT, "ping")], '"pere":"error"'],
  ])("%s: answered", async (_what, frames, said) => {
    const heard = await sayFrames(pere.url, "/feed/frames?device=d", frames, 1_000, said);
    expect(heard.text).toContain(said);
    expect([heard.code, heard.closed]).toEqual([0, false]);
  });

  test("an incomplete handshake gets 4xx", async () => {
    for (const headers of [
      { "Sec-WebSocket-Key": null },
      { "Sec-WebSocket-Key": "short" },
      { "Sec-WebSocket-Version": "7" },
      { "Sec-WebSocket-Protocol": "mqtt, soap" },
    ])
      for (const path of ["/feed/half", "/feedback/half"]) {
        const heard = await say(pere.url, handshake(path, headers));
        expect(heard.status, JSON.stringify(headers)).toBeOneOf([400, 426, 101]);
        if (heard.status === 101) expect(Object.keys(headers)).toEqual(["Sec-WebSocket-Version"]);
      }
    expect((await say(pere.url, handshake("/push/half", {}, "POST"))).status).toBeWithin(400, 500);
    expect((await say(pere.url, handshake("/health"))).status).toBe(200);
  });

  test("a thousand messages before ready are each answered", async () => {
    const { socket, said } = await openRaw(pere.url, "/feed/early?device=d");
    socket.destroy();
    expect(said()).toContain('"pere":"ready"');
    const { hostname, port } = new URL(pere.url);
    const hasty = dial(Number(port), hostname);
    let text = "";
    hasty.on("data", (bytes) => (text += bytes.toString("latin1")));
    hasty.write(handshake("/feed/early?device=d"));
    await until(() => text.includes("\r\n\r\n"));
    hasty.write(Buffer.concat(Array.from({ length: 1_000 }, () => frameOf(TEXT, "[]"))));
    await until(() => text.split('"pere":"receipts"').length + text.split('"pere":"error"').length === 1_002);
    hasty.destroy();
  });

  test("50,000 pings and 20,000 tiny messages delay no one", async () => {
    const { socket, said } = await openRaw(pere.url, "/feed/flood?device=d");
    socket.write(Buffer.concat(Array.from({ length: 50_000 }, () => frameOf(PING, "p"))));
    socket.write(Buffer.concat(Array.from({ length: 20_000 }, () => frameOf(TEXT, "[]"))));
    await push(pere.url, "flood", 1);
    await until(() => said().split('"recorded":0').length > 20_000);
    socket.destroy();
  });

  test.each([
    ["receipts", () => frameOf(TEXT, `[${"0,".repeat(500)}0]`), 4_000],
    ["pings", () => frameOf(PING, "x".repeat(125)), 100_000],
  ] as const)(
    "a socket that never reads while its %s are answered costs a bounded buffer",
    async (_what, frame, count) => {
      const { socket } = await openRaw(pere.url, "/feed/deaf?device=d");
      const before = await heap();
      const resident = (): number =>
        1024 * Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pere.child.pid}/status`, "utf8"))![1]);
      const residentBefore = resident();
      socket.pause();
      socket
        .removeAllListeners("close")
        .removeAllListeners("error")
        .on("error", () => {});
      const frames = Buffer.concat(Array.from({ length: 100 }, frame));
      // Each message of receipts is answered with some 30 kB: 120 MB in all.
      for (let n = 0; n < count / 100 && !socket.destroyed; n++)
        if (!socket.write(frames))
          await Promise.race([new Promise((resolve) => socket.once("drain", resolve)), Bun.sleep(20)]);
      // It is let go of when a mebibyte waits for it.
      await until(
        async () => !(await ask(`${pere.url}/devices/deaf`)).body.devices[0].connected,
        () => `the end; memory grew by ${resident() - residentBefore}`,
      );
      expect((await heap()) - before).toBeLessThan(16 * MEBIBYTE);
      expect(resident() - residentBefore).toBeLessThan(64 * MEBIBYTE);
      socket.destroy();
    },
    180_000,
  );

  test("leave nothing behind", unharmed, 20_000);
});
