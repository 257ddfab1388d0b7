/**
 * `clients/pere.sh` on a bad network: redirects, proxies, refused receipts, delays that the service asks for, a signal during a long-poll, and a machine without
 * curl or without its folder.
 */
import { expect } from "bun:test";
import { existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { push, temporary, until } from "./support/harness.ts";
import { Device, isDone, rowOf, service, SHELLS, shellTest } from "./support/shell.ts";

shellTest("a redirect is told with the address to use; the environment's proxy is used", async () => {
  const { url, proxy } = await service();
  const head = (status: number, location: string) => ({
    bytes: `HTTP/1.1 ${status} Moved\r\nlocation: ${location}\r\nContent-Length: 0\r\n\r\n`,
    stays: false,
  });
  proxy.weather = () => head(301, "https://push.example.com{target}");
  const lost = new Device([proxy.url, "orders", "till-7", "cat"]);
  await lost.complains(/redirected with status 301: use the address https:\/\/push\.example\.com\)/);
  lost.child.kill("SIGTERM");
  await lost.ended();

  // 307 and 308 to the same origin are followed.
  const isMoved = (target: string): boolean => /since=now|x=1/.test(target);
  proxy.weather = ({ target }) =>
    isMoved(target) || /feedback/.test(target)
      ? "pass"
      : head(308, target.startsWith("/feed/") ? "{origin}{target}&since=now" : "{target}");
  const first = await push(url, "orders", 1);
  const moved = new Device([proxy.url, "orders", "till-7", "cat"]);
  await isDone(url, first);
  expect(proxy.seen.some(({ target, answer }) => isMoved(target) && answer.includes("pere.ready"))).toBe(true);
  moved.child.kill("SIGTERM");
  await moved.ended();

  proxy.weather = () => "pass";
  const before = proxy.seen.length;
  const id = await push(url, "orders", 2);
  const proxied = new Device([url, "orders", "till-7", "cat"], { HTTP_PROXY: proxy.url });
  await until(() => proxy.seen.length > before, "a request by the proxy");
  expect(proxy.seen[before]!.target).toStartWith(`${url}/feed/orders`);
  proxied.child.kill("SIGKILL");
  new Device([url, "orders", "till-7", "cat"], { HTTP_PROXY: "http://127.0.0.1:9", NO_PROXY: "127.0.0.1" });
  await isDone(url, id);
});

shellTest("a final receipt that is refused for good does not silence the stream", async () => {
  const { url, proxy } = await service();
  const [first, second] = [await push(url, "orders", 1), await push(url, "orders", 2)];
  const problem = '{"type":"urn:pere:invalid","title":"no","status":422,"detail":"no"}';
  const bytes = `HTTP/1.1 422 No\r\nContent-Type: application/problem+json\r\nContent-Length: ${problem.length}\r\n\r\n${problem}`;
  proxy.weather = ({ errand, body }) =>
    errand === "receipts" && body.includes(first) && body.includes("done") ? { bytes, stays: false } : "pass";
  const device = new Device([proxy.url, "orders", "till-7", "cat"], { PERE_SILENCE: "3600" });
  await device.complains(/done of .* was rejected/);
  await isDone(url, second);
});

shellTest("a pause that is asked for `received` delays no work, and no end", async () => {
  const { url, proxy } = await service();
  proxy.weather = ({ errand, body }) =>
    errand === "receipts" && body.includes("received") ? { status: 503, retryAfter: 3_600 } : "pass";
  const gate = join(temporary(), "gate");
  const device = new Device([proxy.url, "orders", "till-7", `: >'${gate}'`]);
  const id = await push(url, "orders", 1);
  await until(() => existsSync(gate), "work");
  device.child.kill("SIGTERM");
  expect(await device.ended()).toBe(143);
  expect((await rowOf(url, id)).status).toBe("done");
});

shellTest("a signal ends a long-poll", async () => {
  const { proxy } = await service();
  proxy.weather = ({ errand }) => (errand === "sse" ? "hold" : "pass");
  for (const shell of SHELLS) {
    const before = proxy.seen.length;
    const device = new Device([proxy.url, "orders", "till-7", "cat"], { PERE_FIRST_BYTE: "1" }, shell);
    await until(() => proxy.seen.slice(before).some(({ errand }) => errand === "poll"), "a long-poll");
    device.child.kill("SIGTERM");
    expect([shell, await device.ended()]).toEqual([shell, 143]);
    // The service would have answered it after 25 s.
    const polls = proxy.seen.slice(before).filter(({ errand }) => errand === "poll");
    expect([shell, polls.map(({ answer }) => answer)]).toEqual([shell, [""]]);
  }
});

shellTest("without curl it says so and ends; without its folder it waits for it", async () => {
  const { url } = await service();
  for (const shell of SHELLS) {
    const [program, ...words] = shell;
    const args = [url, "orders", "till-7", "cat"];
    const refused = new Device(args, { PATH: "/nonexistent" }, [Bun.which(program!)!, ...words]);
    expect([shell, await refused.ended(), refused.complained]).toEqual([
      shell,
      2,
      "pere: curl is needed, but it is not on the PATH\n",
    ]);
    const device = new Device(args, {}, shell);
    const first = await push(url, "orders", 1);
    const position = join(device.state, "position");
    await until(() => existsSync(position) && readFileSync(position, "utf8") === `${first}\n`, "the position");
    rmSync(device.state, { recursive: true });
    const id = await push(url, "orders", 2);
    await device.complains(/stays open: .* can't be written to/);
    mkdirSync(device.state);
    await isDone(url, id);
    device.child.kill("SIGTERM");
    await device.ended();
  }
});
