/**
 * The SDK and tokens that end: a new one is asked for in time, on every transport.
 */
import { expect, test } from "bun:test";
import { SignJWT } from "jose";
import { publish } from "../clients/sdk/index.ts";
import { SECRET, startWith, until } from "./support/harness.ts";
import { Between, counting, device, LIMIT_MS, TIMING } from "./support/sdk-device.ts";

const tokenFor = (seconds: number, sub = "till-7"): Promise<string> =>
  new SignJWT({ pere: { feed: ["orders"], push: ["orders"] } })
    .setProtectedHeader({ alg: "HS256" })
    .setSubject(sub)
    .setExpirationTime(Math.floor(Date.now() / 1000) + seconds)
    .sign(new TextEncoder().encode(SECRET));

for (const transport of ["sse", "websocket", "longpoll"] as const)
  test(
    `tokens that end in mid-feed are replaced, by ${transport}; the device is the token's`,
    async () => {
      await using cleanup = new AsyncDisposableStack();
      const pere = cleanup.adopt(await startWith(), (service) => service.stop());
      let asked = 0;
      let sockets = 0;
      class Counted extends WebSocket {
        constructor(url: string, protocols: string[]) {
          super(url, protocols);
          sockets++;
        }
      }
      const between = new Between();
      between.holds = transport !== "sse";
      const { worked, listener, by, status } = device({
        url: pere.url,
        device: undefined,
        // It asks for the next one when a fifth of its time is left: so long may a busy machine take over a request.
        token: () => (asked++, tokenFor(5)),
        fetch: between.fetch,
        WebSocket: transport === "longpoll" ? null : Counted,
        timing: { ...TIMING, ...(between.holds ? { firstByteMs: 1_000 } : {}) },
      });
      cleanup.defer(() => listener.close());
      const publisher = { token: await tokenFor(600, "office") };
      await by(transport);
      if (transport !== "longpoll") expect(status().device).toBe("till-7");
      for (let count = 0; asked < 3; count++) {
        const answer = await publish(pere.url, "orders", count, { ...publisher, wait: 10 });
        expect(answer).toMatchObject({ complete: true, receipts: { done: 1 } });
        await Bun.sleep(100);
      }
      expect(worked).toEqual(counting(worked.length));
      // None was used beyond its end, and an open socket was given the next.
      expect(between.refusals).toBe(0);
      expect(sockets).toBe(transport === "websocket" ? 1 : 0);
    },
    LIMIT_MS,
  );

test(
  "a token that is refused is asked for anew, as often as it takes; one that can't be replaced is refused for good",
  async () => {
    await using cleanup = new AsyncDisposableStack();
    const pere = cleanup.adopt(await startWith(), (service) => service.stop());
    const tokens = ["nonsense", await tokenFor(600)];
    const recovers = device({ url: pere.url, token: () => tokens.shift()! });
    cleanup.defer(() => recovers.listener.close());
    await recovers.by("sse");
    const refused = device({ url: pere.url, token: "nonsense" });
    expect(await refused.listener.closed.catch((error: unknown) => error)).toHaveProperty("status", 401);
    await expect(publish(pere.url, "orders", 1, { token: () => "nonsense" })).rejects.toHaveProperty("status", 401);
    // Who gives tokens may have a better one later.
    for (const ways of [{}, { fetch: new Between().fetch, WebSocket: null }]) {
      const held: string[] = [];
      const waits = device({
        url: pere.url,
        token: () => held.at(-1) ?? tokenFor(-600),
        timing: { ...TIMING, firstByteMs: 1_000 },
        ...ways,
      });
      cleanup.defer(() => waits.listener.close());
      await until(() => /expired/.test(waits.status().error ?? ""));
      held.push(await tokenFor(600));
      await until(() => waits.status().state === "connected", "it to be let in");
    }
    const stranger = device({ url: pere.url, channels: "secrets", token: await tokenFor(600) });
    expect(await stranger.listener.closed.catch((error: unknown) => error)).toHaveProperty("status", 403);
    // A giver that fails is asked again.
    let failures = 3;
    const patient = device({
      url: pere.url,
      token: () => (failures-- > 0 ? Promise.reject(new Error("no network")) : tokenFor(600)),
    });
    cleanup.defer(() => patient.listener.close());
    await patient.by("sse");
  },
  LIMIT_MS,
);
