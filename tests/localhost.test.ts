/**
 * `HOST=localhost` is both of this machine's own addresses: what a resolver names first is not what every program takes.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createServer } from "node:net";
import type { Server } from "bun";
import { addressesOf, listen } from "../engine/http/listener.ts";
import { readSettings } from "../engine/ops/settings.ts";
import type { Service } from "../index.ts";
import { ask, connect, give, listen as listenTo, push, startWith, until } from "./support/harness.ts";
import { lastingPort, NO_HOST } from "./support/ports.ts";

const found = await addressesOf("localhost");
const hasBoth = found.length === 2;
const why = hasBoth ? "" : ` (skipped: this machine has ${found.join(", ")} alone)`;

test("only localhost is more than one address, and an unknown name is an error", async () => {
  for (const host of ["127.0.0.1", "::1", "0.0.0.0", "::", "192.0.2.1"])
    expect(await addressesOf(host)).toEqual([host]);
  await expect(addressesOf(NO_HOST)).rejects.toThrow(`${NO_HOST}: this machine has no such address`);
  expect(found).toContain("127.0.0.1");
});

describe.skipIf(!hasBoth)(`at localhost${why}`, () => {
  let pere: Service;
  let urls: string[];
  beforeAll(async () => {
    pere = await startWith({ host: "localhost", access: readSettings([], { HOST: "localhost" }).access });
    const { port, hostname } = new URL(pere.url);
    expect(hostname).toBe("localhost");
    urls = [`http://127.0.0.1:${port}`, `http://[::1]:${port}`];
  });
  afterAll(() => pere.stop());

  test("all transports and bodies work at both addresses, and events pushed at one are delivered at the other", async () => {
    for (const [one, other] of [urls, urls.toReversed()] as [string, string][]) {
      const channel = `c${urls.indexOf(one)}`;
      const stream = await listenTo(`${one}/feed/${channel}?device=d`);
      const { socket, messages } = await connect(`${one}/feed/${channel}?device=d`);
      const polled = ask(`${one}/feed/${channel}?device=e&wait=60`, { headers: { Accept: "application/json" } });
      await until(async () => (await ask(`${other}/devices/${channel}`)).body.devices?.length === 2, "both devices");
      const event = await push(other, channel, "x".repeat(50_000));
      expect((await stream.have(1))[0]!.id).toBe(event);
      await until(() => messages.some(({ id }) => id === event), "the event on the socket");
      expect((await polled).body.events).toHaveLength(1);
      socket.send(JSON.stringify({ event, status: "done" }));
      await until(() => messages.some(({ pere: own }) => own === "receipts"), "the answer");
      expect((await give(one, channel, event, "e", "done")).body.recorded).toBe(1);
      expect((await ask(`${other}/`)).text).toContain("PERE console");
      stream.close();
      socket.close();
    }
  });

  test("a port in use at one of them stops the start, and leaves the other free", async () => {
    const port = lastingPort();
    const squatter = createServer();
    await new Promise<void>((resolve) => squatter.listen(port, "::1", resolve));
    await expect(startWith({ host: "localhost", port })).rejects.toThrow(`localhost, port ${port}: another program`);
    await new Promise((resolve) => squatter.close(resolve));
    const later = await startWith({ host: "localhost", port });
    expect((await ask(`http://[::1]:${port}/health`)).status).toBe(200);
    await later.stop();
    await expect(fetch(`http://127.0.0.1:${port}/health`)).rejects.toThrow();
    await expect(fetch(`http://[::1]:${port}/health`)).rejects.toThrow();
  });

  test("port 0 picks a port that is free at both", async () => {
    const stopped: number[] = [];
    let free = 40_001;
    const listening = listen<unknown>(
      found,
      ({ hostname, port }) => {
        if (hostname === "::1" && port < 40_003) throw Object.assign(new Error("taken"), { code: "EADDRINUSE" });
        const taken = port === 0 ? free++ : port;
        return {
          ...{ port: taken, pendingRequests: 0, pendingWebSockets: 0 },
          stop: async () => void stopped.push(taken),
        } as unknown as Server<unknown>;
      },
      { host: "localhost", port: 0, tls: null },
    );
    expect(listening.port).toBe(40_003);
    expect(stopped).toEqual([40_001, 40_002]);
    await listening.stop();
  });
});
