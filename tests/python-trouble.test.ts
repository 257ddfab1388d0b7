/**
 * `clients/python/pere.py` on a bad network: answers that are not PERE's, silence, redirects, proxies, and a device name that is used twice.
 */
import { expect } from "bun:test";
import { createServer } from "node:net";
import { readRanges } from "../engine/addresses.ts";
import { BAD_ANSWERS } from "./support/bad-answers.ts";
import { BadProxy } from "./support/bad-proxy.ts";
import { ask, give, openStream, push, startWith, until } from "./support/harness.ts";
import { cleanup, enrol, Python, pythonTest, service } from "./support/python.ts";

pythonTest("publish: what is no answer of the service is tried again, whatever it is", async () => {
  const { url, proxy } = await service();
  const rows = BAD_ANSWERS.filter(({ to }) => to.includes("push"));
  let next = 0;
  let endsAt = 0;
  proxy.weather = ({ target }) => {
    const row = rows[next >> 1];
    if (row === undefined || !target.startsWith("/push/")) return "pass";
    if (performance.now() < endsAt) return row;
    // Each one once, and then the service.
    if (next++ % 2 === 1) return "pass";
    endsAt = performance.now() + row.forMs;
    return row;
  };
  const script = `import pere, sys
pere.BACKOFF_SECONDS_MAX = 0.02
for n in range(int(sys.argv[2])): print(pere.publish(sys.argv[1], "orders", n, report=lambda line: None)["id"])`;
  const publisher = new Python(["-c", script, proxy.url, String(rows.length)]);
  expect([await publisher.ended(), publisher.complained]).toEqual([0, ""]);
  const stored = (await ask(`${url}/events/orders?limit=1000`)).body.events as { id: string }[];
  expect(publisher.said.trim().split("\n")).toEqual(stored.map(({ id }) => id));
  expect(stored).toHaveLength(rows.length);
});

pythonTest("receipts: what is no answer of the service is passed over, whatever it is", async () => {
  const { url, proxy } = await service();
  await enrol(url, "till-7");
  const id = await push(url, "orders", 1);
  const rows = BAD_ANSWERS.filter(({ to }) => to.includes("stream"));
  let endsAt = 0;
  let row = rows[0]!;
  let isOver = false;
  proxy.weather = () => {
    if (performance.now() < endsAt) return row;
    const next = rows.shift();
    isOver ||= next === undefined;
    if (next === undefined) return "pass";
    row = next;
    endsAt = performance.now() + row.forMs;
    return row;
  };
  const script = `import pere, sys
pere.BACKOFF_SECONDS_MAX = 0.02
for receipt in pere.receipts(sys.argv[1], "orders", report=lambda line: None): print(receipt.get("status", receipt.get("complete")))`;
  const follower = new Python(["-c", script, proxy.url]);
  // Some of the bad answers begin as good ones do.
  await until(() => isOver && proxy.seen.at(-1)?.answer.includes('"channels":{'), "the service", 50_000);
  await give(url, "orders", id, "till-7", "done");
  await follower.says(/True/);
  expect([follower.said, follower.complained]).toEqual(["done\nTrue\n", ""]);
});

pythonTest("publish: where nobody answers it says so before two seconds have passed", async () => {
  // Takes connections, and says nothing.
  const mute = createServer();
  mute.listen(0, "127.0.0.1");
  await until(() => mute.listening, "a port");
  cleanup.push(() => mute.close());
  const { port } = mute.address() as { port: number };
  for (const url of [`http://127.0.0.1:${port}`, "http://127.0.0.1:9"]) {
    const publisher = new Python(["publish", url, "orders", "1"]);
    await until(() => /^pere: .*(trying for 60 s|trying again)/.test(publisher.complained), "a word");
    publisher.child.kill("SIGKILL");
  }
});

pythonTest("an answer that says Connection: close has the stream's patience, not that of its first byte", async () => {
  const { url, proxy } = await service();
  const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
  proxy.weather = ({ errand }) =>
    errand === "sse" ? { bytes: `${head}event: pere.ready\ndata: {"channels":{}}\n\n`, stays: true } : "pass";
  await enrol(url, "till-7");
  const times = ["--first-byte", "300", "--silence", "0.5"];
  const listener = new Python(["listen", proxy.url, "orders", "--device", "till-7", ...times]);
  await until(() => /using long-polling/.test(listener.complained), "long-polls");
});

pythonTest("receipts: told to stop during a long-poll, it stops", async () => {
  const { proxy } = await service();
  proxy.weather = ({ head }) => (/text\/event-stream/.test(head) ? "hold" : "pass");
  const script = `import pere, signal, sys
pere.FIRST_BYTE_SECONDS = 0.2
def follow(stop, is_ending):
    for receipt in pere.receipts(sys.argv[1], "orders", stop=stop): pass
pere._run_until_signal(follow)`;
  const follower = new Python(["-c", script, proxy.url]);
  await until(() => proxy.seen.some(({ target }) => /wait=/.test(target)), "a long-poll");
  follower.child.kill("SIGTERM");
  expect(await follower.ended()).toBe(0);
  // The service would have answered it after 25 s.
  expect(proxy.seen.filter(({ target }) => /wait=/.test(target)).map(({ answer }) => answer)).toEqual([""]);
});

pythonTest("a redirect is told with the address to use; 307 and 308 to the same origin are followed", async () => {
  const { url, proxy } = await service();
  await enrol(url, "till-7");
  const html = (status: number, location: string) => ({
    bytes: `HTTP/1.1 ${status} Moved\r\nLocation: ${location}\r\nContent-Length: 0\r\n\r\n`,
    stays: false,
  });
  proxy.weather = () => html(301, "https://push.example.com{target}");
  const listener = new Python(["listen", proxy.url, "orders", "--device", "till-7"]);
  await until(
    () => /redirected with status 301: use the address https:\/\/push\.example\.com;/.test(listener.complained),
    () => listener.complained,
  );
  listener.child.kill("SIGKILL");
  for (const [status, location] of [
    [307, "{origin}{target}&ttl=60"],
    [308, "{target}&ttl=60"],
  ] as const) {
    const before = proxy.seen.length;
    proxy.weather = ({ target }) => (/ttl=60/.test(target) ? "pass" : html(status, location));
    const publisher = new Python(["publish", proxy.url, "orders", "1", "--type", "a"]);
    expect(await publisher.ended()).toBe(0);
    expect(proxy.seen.length - before).toBe(2);
    expect(proxy.seen.at(-1)).toMatchObject({ body: "1", target: expect.stringContaining("ttl=60") });
  }
});

pythonTest(
  "the proxy that the environment names is used, with its password, and not where NO_PROXY says so",
  async () => {
    const { url, proxy } = await service();
    await enrol(url, "till-7");
    const port = new URL(proxy.url).port;
    for (const [env, isProxied] of [
      [{ HTTP_PROXY: `http://me:p%20w@127.0.0.1:${port}` }, true],
      [{ http_proxy: `127.0.0.1:${port}`, NO_PROXY: "example.com" }, true],
      [{ ALL_PROXY: `http://127.0.0.1:${port}` }, true],
      [{ HTTP_PROXY: proxy.url, NO_PROXY: "127.0.0.1" }, false],
      [{ HTTPS_PROXY: proxy.url }, false],
    ] as [Record<string, string>, boolean][]) {
      const before = proxy.seen.length;
      const publisher = new Python(["publish", url, "orders", "1"], env);
      expect([env, await publisher.ended(), publisher.complained]).toEqual([env, 0, ""]);
      expect([env, proxy.seen.length > before]).toEqual([env, isProxied]);
      if (isProxied) expect(proxy.seen.at(-1)!.target).toBe(`${url}/push/orders?`);
      if ("HTTP_PROXY" in env && isProxied)
        expect(proxy.seen.at(-1)!.head).toContain(`Proxy-Authorization: Basic ${btoa("me:p w")}`);
    }
    // For TLS it is asked for a tunnel.
    const before = proxy.seen.length;
    const secure = new Python(["publish", "https://push.example.com", "orders", "1"], { HTTPS_PROXY: proxy.url });
    await until(() => proxy.seen.length > before, "a request");
    expect(proxy.seen[before]!.head).toStartWith("CONNECT push.example.com:443 ");
    secure.child.kill("SIGKILL");
  },
);

pythonTest("publish: a proxy for every program that is no HTTP proxy is passed by", async () => {
  const { url } = await service();
  await enrol(url, "till-7");
  const publisher = new Python(["publish", url, "orders", "1"], { ALL_PROXY: "socks5h://127.0.0.1:9" });
  expect([await publisher.ended(), publisher.complained]).toEqual([0, ""]);
});

pythonTest("listen: a device that is open at two addresses says so, on an event stream and on long-polls", async () => {
  const pere = await startWith({ access: "open", origins: "*", proxies: readRanges("127.0.0.1/32") });
  cleanup.push(() => pere.stop());
  const proxy = await BadProxy.to(pere.url);
  cleanup.push(() => proxy.stop());
  proxy.weather = ({ errand }) => (errand === "sse" ? "buffer" : "pass");
  const twin = await openStream(`${pere.url}/feed/orders?device=till-7`, { "X-Forwarded-For": "192.0.2.1" });
  cleanup.push(() => twin.close());
  for (const url of [pere.url, proxy.url]) {
    const listener = new Python(["listen", url, "orders", "--device", "till-7", "--first-byte", "0.5"]);
    // An event ends a long-poll.
    await until(
      async () => {
        await push(pere.url, "orders", 1);
        await Bun.sleep(100);
        return /connected from several addresses; .*192\.0\.2\.1/.test(listener.complained);
      },
      () => listener.complained,
      180_000,
    );
    listener.child.kill("SIGTERM");
    await listener.ended();
  }
});
