/**
 * Every limit from both sides: what just fits is taken, what is more is refused with its status and a sentence.
 */
import { describe, expect, test } from "bun:test";
import {
  BODY_BYTES_MAX,
  DETAIL_BYTES_MAX,
  HOOK_BYTES_MAX,
  KEY_CHARACTERS_MAX,
  LINES_MAX,
  PAGE_MAX,
  POLL_SECONDS_MAX,
  RECEIPTS_MAX,
  TO_MAX,
  TTL_SECONDS_MAX,
  WAIT_SECONDS_MAX,
} from "../../engine/model.ts";
import { ask, connect, give, push, until } from "../support/harness.ts";
import { FORM, LINES, pere, POLL, putUnderAttack, tried, unharmed } from "./attack.ts";

putUnderAttack();

describe("input at the limit is accepted, and beyond it refused with a status and a sentence", () => {
  const names = (count: number, prefix = "n"): string =>
    Array.from({ length: count }, (_, n) => `${prefix}${n}`).join(",");
  const asPoll = { headers: POLL };
  const hook = JSON.stringify({ url: "http://127.0.0.1:9/" });
  const line = (bytes: number): string => `"${"x".repeat(bytes - 2)}"`;
  const big = (bytes: number): string =>
    `${line(60_000)}\n`.repeat(Math.floor(bytes / 60_001)) + " ".repeat(bytes % 60_001);
  const limits: readonly (readonly [
    string,
    string,
    Parameters<typeof ask>[1],
    number,
    string,
    Parameters<typeof ask>[1],
    number,
  ])[] = [
    ["an event's 64 KiB", "/push/l", { body: line(65_536) }, 201, "/push/l", { body: line(65_537) }, 413],
    [
      "a line's 64 KiB",
      "/push/l",
      { body: line(65_536), type: LINES },
      201,
      "/push/l",
      { body: line(65_537), type: LINES },
      413,
    ],
    [
      "a batch's 8 MiB",
      "/push/l",
      { body: big(BODY_BYTES_MAX), type: LINES },
      201,
      "/push/l",
      { body: big(BODY_BYTES_MAX + 1), type: LINES },
      413,
    ],
    [
      "a batch's lines",
      "/push/l",
      { body: "1\n".repeat(LINES_MAX), type: LINES },
      201,
      "/push/l",
      { body: "1\n".repeat(LINES_MAX + 1), type: LINES },
      413,
    ],
    [
      "the names in to",
      `/push/l?to=${names(TO_MAX)}`,
      { body: "1" },
      201,
      `/push/l?to=${names(TO_MAX + 1)}`,
      { body: "1" },
      422,
    ],
    [
      "a time to live",
      `/push/l?ttl=${TTL_SECONDS_MAX}`,
      { body: "1" },
      201,
      `/push/l?ttl=${TTL_SECONDS_MAX + 1}`,
      { body: "1" },
      422,
    ],
    [
      "a deadline",
      `/push/l?deadline=${TTL_SECONDS_MAX}`,
      { body: "1" },
      201,
      `/push/l?deadline=${TTL_SECONDS_MAX + 1}`,
      { body: "1" },
      422,
    ],
    ["a reminder", "/push/l?remind=1", { body: "1" }, 201, "/push/l?remind=0.999999", { body: "1" }, 422],
    [
      "a type",
      `/push/l?type=${"t".repeat(64)}`,
      { body: "1" },
      201,
      `/push/l?type=${"t".repeat(65)}`,
      { body: "1" },
      400,
    ],
    [
      "a key",
      "/push/l",
      { body: "1", headers: { "Idempotency-Key": "k".repeat(KEY_CHARACTERS_MAX) } },
      201,
      "/push/l",
      { body: "1", headers: { "Idempotency-Key": "k".repeat(KEY_CHARACTERS_MAX + 1) } },
      400,
    ],
    // Nobody is enrolled here, so nobody is waited for.
    [
      "a wait",
      "/push/l2",
      { body: "1", headers: { Prefer: `wait=${WAIT_SECONDS_MAX}` } },
      201,
      "/push/l2",
      { body: "1", headers: { Prefer: `wait=${WAIT_SECONDS_MAX + 1}` } },
      422,
    ],
    [
      "a channel's name",
      `/push/${"c".repeat(128)}`,
      { body: "1" },
      201,
      `/push/${"c".repeat(129)}`,
      { body: "1" },
      400,
    ],
    [
      "a device's name",
      `/devices/l/${"d".repeat(128)}`,
      { method: "PUT" },
      201,
      `/devices/l/${"d".repeat(129)}`,
      { method: "PUT" },
      400,
    ],
    [
      "a hook's name",
      `/hooks/l/${"h".repeat(128)}`,
      { method: "PUT", body: { url: "http://127.0.0.1:9/" } },
      201,
      `/hooks/l/${"h".repeat(129)}`,
      { method: "PUT", body: { url: "http://127.0.0.1:9/" } },
      400,
    ],
    [
      "a hook's bytes",
      "/hooks/l/one",
      { method: "PUT", body: hook.padStart(HOOK_BYTES_MAX) },
      201,
      "/hooks/l/two",
      { method: "PUT", body: hook.padStart(HOOK_BYTES_MAX + 1) },
      413,
    ],
    ["a feed's channels", `/feed/${names(16)}`, asPoll, 200, `/feed/${names(17)}`, asPoll, 422],
    ["a receipts feed's channels", `/feedback/${names(16)}`, asPoll, 200, `/feedback/${names(17)}`, asPoll, 422],
    [
      "a feed's positions",
      `/feed/l?last-event-id=${Array.from({ length: 16 }, (_, n) => `e-${n}`).join(".")}`,
      asPoll,
      200,
      `/feed/l?last-event-id=${Array.from({ length: 17 }, (_, n) => `e-${n}`).join(".")}`,
      asPoll,
      400,
    ],
    [
      "a long-poll's wait",
      `/feed/l?since=earliest&wait=${POLL_SECONDS_MAX}`,
      asPoll,
      200,
      `/feed/l?since=earliest&wait=${POLL_SECONDS_MAX + 1}`,
      asPoll,
      422,
    ],
    ["a page", `/events/l?limit=${PAGE_MAX}`, {}, 200, `/events/l?limit=${PAGE_MAX + 1}`, {}, 422],
    ["a page of devices", `/devices/l?limit=${PAGE_MAX}`, {}, 200, `/devices/l?limit=${PAGE_MAX + 1}`, {}, 422],
    ["a page of channels", `/channels?limit=${PAGE_MAX}`, {}, 200, `/channels?limit=${PAGE_MAX + 1}`, {}, 422],
    [
      "a request's receipts",
      "/feedback/l",
      { body: Array.from({ length: RECEIPTS_MAX }, () => 0) },
      422,
      "/feedback/l",
      { body: Array.from({ length: RECEIPTS_MAX + 1 }, () => 0) },
      413,
    ],
    [
      "a request of receipts",
      "/feedback/l",
      { body: `${" ".repeat(RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024) - 2)}[]` },
      200,
      "/feedback/l",
      { body: `${" ".repeat(RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024) - 1)}[]` },
      413,
    ],
  ];
  test.each(limits)("%s", async (_what, path, init, status, pathBeyond, beyond, refused) => {
    const fits = await tried(path, init);
    expect(fits.status, fits.text.slice(0, 300)).toBe(status);
    const answer = await tried(pathBeyond, beyond);
    expect(answer.status, answer.text.slice(0, 300)).toBe(refused);
    expect(answer.body.detail.length).toBeGreaterThan(15);
  });

  test("a receipt's detail of 4 KiB, over HTTP and over a socket", async () => {
    const event = await push(pere.url, "l", 1, "?to=a,b,c,d");
    expect((await give(pere.url, "l", event, "a", "done", { detail: "x".repeat(DETAIL_BYTES_MAX - 2) })).status).toBe(
      200,
    );
    expect(
      (await give(pere.url, "l", event, "b", "done", { detail: "\u00e9".repeat(DETAIL_BYTES_MAX / 2 - 1) })).status,
    ).toBe(200);
    const beyond = await give(pere.url, "l", event, "c", "done", { detail: "x".repeat(DETAIL_BYTES_MAX - 1) });
    expect([beyond.status, beyond.body.rejected[0].reason]).toEqual([422, `detail: at most ${DETAIL_BYTES_MAX} bytes`]);
    const wide = await give(pere.url, "l", event, "c", "done", { detail: "\u00e9".repeat(DETAIL_BYTES_MAX / 2) });
    expect(wide.status).toBe(422);
    const feed = await connect(`${pere.url}/feed/l?device=d&since=now`);
    const { length } = feed.messages;
    feed.socket.send(JSON.stringify({ event, status: "done", detail: "x".repeat(DETAIL_BYTES_MAX - 1) }));
    feed.socket.send(JSON.stringify(Array.from({ length: RECEIPTS_MAX + 1 }, () => 0)));
    const own = () => feed.messages.slice(length).filter(({ pere }) => pere === "receipts" || pere === "error");
    await until(() => own().length === 2);
    expect(own().find(({ pere }) => pere === "receipts")!.rejected[0].reason).toContain("detail: at most");
    expect(own().find(({ pere }) => pere === "error")!.detail).toContain(`at most ${RECEIPTS_MAX} receipts`);
    feed.socket.close();
  });

  test("an old client's status is kept up to the limit of a detail", async () => {
    const event = await push(pere.url, "l", 1, "?to=a");
    const body = new URLSearchParams({ id: event, device: "a", status: "\0".repeat(5_000) }).toString();
    expect((await tried("/feedback/l", { body, type: FORM })).body.recorded).toBe(1);
    const [{ detail }] = (await tried(`/events/l/${event}/receipts`)).body.receipts;
    expect(Buffer.byteLength(JSON.stringify(detail))).toBeWithin(DETAIL_BYTES_MAX - 100, DETAIL_BYTES_MAX + 1);
  });

  test("and nothing is left behind", unharmed, 20_000);
});
