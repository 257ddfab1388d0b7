/**
 * What a publisher reads with the SDK, from a real service: lists of any length, and errors as they are.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readRanges } from "../engine/addresses.ts";
import {
  deleteChannel,
  PereError,
  readChannels,
  readDevice,
  readDevices,
  readHistory,
  readRows,
  testHook,
} from "../clients/sdk/index.ts";
import type { Service } from "../index.ts";
import { ask, give, push, start } from "./support/harness.ts";

let pere: Service;
beforeAll(async () => void (pere = await start({ hooksAllowed: readRanges("127.0.0.0/8") })));
afterAll(() => pere.stop());

const enrol = (channel: string, device: string) => ask(`${pere.url}/devices/${channel}/${device}`, { method: "PUT" });
const url = () => ({ url: pere.url });

test("devices, over pages: searched, filtered, sorted; and one of them", async () => {
  const names = Array.from({ length: 1_300 }, (_, n) => `till-${String(n).padStart(4, "0")}`);
  for (let n = 0; n < names.length; n += 100)
    await Promise.all(names.slice(n, n + 100).map((name) => enrol("many", name)));
  const of = async (more: object): Promise<string[]> =>
    (await Array.fromAsync(readDevices({ ...url(), channel: "many", ...more }))).map(({ device }) => device);
  expect(await of({})).toEqual(names);
  expect(await of({ sort: "pending", connected: false })).toEqual(names);
  expect(await of({ search: "TILL-129" })).toEqual(names.slice(-10));
  const [first] = await Array.fromAsync(readDevices({ ...url(), channel: "many", search: "0007" }));
  expect(await readDevice({ ...url(), channel: "many", device: "till-0007" })).toEqual(first!);
  // Whoever stops reading asks for no more.
  let asked = 0;
  const counted = (at: string, init: RequestInit) => (asked++, fetch(at, init));
  for await (const _ of readDevices({ ...url(), channel: "many", fetch: counted })) break;
  expect(asked).toBe(1);
});

test("a device's history and an event's rows, of several statuses", async () => {
  for (const device of ["a", "b", "c"]) await enrol("said", device);
  const ids = [await push(pere.url, "said", 1), await push(pere.url, "said", 2)];
  await give(pere.url, "said", ids[0]!, "a", "done", { detail: 7 });
  await give(pere.url, "said", ids[0]!, "b", "failed");
  const history = await Array.fromAsync(readHistory({ ...url(), channel: "said", device: "a" }));
  expect(history).toMatchObject([
    { event: ids[1]!, status: "pending", at: null },
    { event: ids[0]!, status: "done", detail: 7 },
  ]);
  const rows = readRows({ ...url(), channel: "said", event: ids[0]!, status: ["failed", "pending"] });
  expect((await Array.fromAsync(rows)).map(({ device, status }) => `${device} ${status}`)).toEqual([
    "b failed",
    "c pending",
  ]);
  expect(await Array.fromAsync(readRows({ ...url(), channel: "said", event: ids[0]! }))).toHaveLength(3);
});

test("channels; an empty one is deleted", async () => {
  await enrol("empty.1", "x");
  expect(await Array.fromAsync(readChannels({ ...url(), search: "EMPTY" }))).toMatchObject([
    { channel: "empty.1", events: 0, devices: 1, last: null },
  ]);
  const refused = await deleteChannel({ ...url(), channel: "empty.1" }).catch((error: unknown) => error);
  expect(refused).toBeInstanceOf(PereError);
  expect((refused as PereError).status).toBe(409);
  await ask(`${pere.url}/devices/empty.1/x`, { method: "DELETE" });
  await deleteChannel({ ...url(), channel: "empty.1" });
  expect(await Array.fromAsync(readChannels({ ...url(), search: "empty" }))).toEqual([]);
});

test("a hook's test", async () => {
  const receiver = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("well", { status: 202 }) });
  await ask(`${pere.url}/hooks/hooked/h`, { method: "PUT", body: { url: `http://127.0.0.1:${receiver.port}/` } });
  expect(await testHook({ ...url(), channel: "hooked", name: "h" })).toEqual({
    ...{ status: 202, ms: expect.any(Number), body: "well", error: null },
  });
  await receiver.stop(true);
});

test("a refusal is thrown at once, a failure is repeated, and an answer of somebody else is not believed", async () => {
  const status = async (reading: Promise<unknown>): Promise<number> =>
    ((await reading.catch((error: unknown) => error as PereError)) as PereError).status;
  expect(await status(readDevice({ ...url(), channel: "said", device: "nobody" }))).toBe(404);
  expect(await status(Array.fromAsync(readDevices({ ...url(), channel: "nowhere" })))).toBe(404);
  let failures = 3;
  const flaky = async (at: string, init: RequestInit): Promise<Response> =>
    failures-- > 0 ? new Response("", { status: 503 }) : fetch(at, init);
  const hasty = { timing: { pauseMsMax: 1 } };
  expect(await readDevice({ ...url(), channel: "said", device: "a", fetch: flaky, ...hasty })).toMatchObject({
    device: "a",
  });
  expect(failures).toBe(-1);
  for (const body of [
    "<html>",
    "{}",
    '{"devices":{}}',
    '{"devices":[{}],"next":null}',
    '{"devices":[],"next":5}',
    '{"devices":[]}',
  ]) {
    const portal = async (): Promise<Response> => new Response(body);
    const reading = Array.fromAsync(readDevices({ ...url(), channel: "said", fetch: portal, giveUpMs: 0, ...hasty }));
    await expect(reading).rejects.toThrow("not from PERE");
  }
  const stopped = new AbortController();
  stopped.abort();
  await expect(readDevice({ ...url(), channel: "said", device: "a", signal: stopped.signal })).rejects.toThrow();
});
