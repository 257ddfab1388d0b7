/**
 * Which addresses a webhook may call: hosts as they are written, names as the tests resolve them, and what PERE_HOOKS_ALLOW adds.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { readRanges } from "../engine/addresses.ts";
import { checkHookUrl, readHookUrl } from "../engine/hooks/call.ts";
import { BODY, call, closeReceivers, NONE, OK, outcome, receive, refusal, SECRET } from "./support/hook-receivers.ts";
import { lastingPort, NO_HOST, noIpv6 } from "./support/ports.ts";

afterAll(closeReceivers);

const PUBLIC = "93.184.216.34";

/** Forms of loopback that somebody might hope to get past a check. */
const LOOPBACK_HOSTS = [
  ...[
    "127.0.0.1",
    "127.0.0.1.",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "%31%32%37.0.0.1",
    "１２７。0.0.1",
  ],
  ...["[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"],
  ...["localhost", "localhost.", "LOCALHOST", "ⓛocalhost", "app.localhost", "a.b.localhost."],
];

/** Addresses that are not public, by what hides in them or where they lead. */
const PRIVATE_HOSTS = [
  ...["0.0.0.0", "0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "169.254.169.254"],
  ...[
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
  ],
  ...[
    "[::]",
    "[::127.0.0.1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b:1::7f00:1]",
  ],
  // DNS64 of addresses that are not public, and what else carries such a one.
  ...["[64:ff9b::7f00:1]", "[64:ff9b::a00:1]", "[64:ff9b::a9fe:a9fe]", "[64:ff9b::]", "[64:ff9b:1:fffe::c0a8:101]"],
  // Where these carry an IPv4 address, and which, depends on the network.
  ...["[64:ff9b:1::808:808]", "[64:ff9b:1:7f00:0:100:808:808]", "[2002:808:808::1]", "[2001:0:808:808::f7f7:f7f7]"],
  ...["[2002:a00:1::8.8.8.8]", "[2001:0:808:808::f5ff:fffe]", "[2001:0:a00:1::f7f7:f7f7]", "[::ffff:0:8.8.8.8]"],
  ...["[2002:7f00:1::]", "[2001:0:7f00:1::1]", "[fe80::1]", "[fec0::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]"],
  ...["[100::1]", "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[4000::1]", "[::2]"],
];

const PUBLIC_HOSTS = [
  PUBLIC,
  "1.1.1.1",
  "172.32.0.1",
  "[2606:4700::1111]",
  "[::ffff:1.1.1.1]",
  // The same host, as DNS64 of a network without IPv4 names it.
  "[64:ff9b::101:101]",
  "[64:ff9b::8.8.8.8]",
  "hook.example",
  "10.example",
];

const NOT_PUBLIC =
  "its host has an address that is not public; to allow it, the operator can list it in PERE_HOOKS_ALLOW";

describe("a host", () => {
  test.each([...LOOPBACK_HOSTS, ...PRIVATE_HOSTS])("%s is refused at once", (host) => {
    for (const protocol of ["http", "https"])
      expect(refusal(() => readHookUrl(`${protocol}://${host}:8080/hook`, NONE))).toBe(`refused url: ${NOT_PUBLIC}`);
  });

  test.each(PUBLIC_HOSTS)("%s is accepted", (host) => {
    expect(readHookUrl(`https://${host}/hook`, NONE).pathname).toBe("/hook");
  });

  const isIpv6 = (host: string): boolean => host.startsWith("[") && !host.includes("f");
  const reachable = LOOPBACK_HOSTS.filter((host) => noIpv6 === null || !isIpv6(host));
  test.each(reachable)("%s gets no connection, and is called if it is allowed", async (host) => {
    const address = isIpv6(host) ? "::1" : "127.0.0.1";
    const receiver = await receive(OK, address);
    const lies = [PUBLIC];
    expect(await call(receiver, { host, addresses: lies, allowed: NONE })).toEqual({
      status: null,
      error: `url: ${NOT_PUBLIC}`,
    });
    expect(receiver.connections).toBe(0);
    expect(await call(receiver, { host, addresses: lies })).toEqual({ status: 200, error: null });
    expect(receiver.connections).toBe(1);
  });
});

describe("a name", () => {
  const url = new URL("http://hook.example/");
  const leadsTo = (...addresses: string[]): { resolve(): Promise<string[]> } => ({ resolve: async () => addresses });

  test("is accepted if all of its addresses are public, and refused for one that is not", async () => {
    await checkHookUrl(url, NONE, leadsTo(PUBLIC, "2606:4700::1111"));
    for (const address of [
      "127.0.0.1",
      "::1",
      "::ffff:10.0.0.1",
      "fe80::1%eth0",
      "64:ff9b::a00:1",
      "::7f00:1",
      "nonsense",
      "",
    ])
      for (const addresses of [[address], [PUBLIC, address], [address, PUBLIC]])
        await expect(checkHookUrl(url, NONE, leadsTo(...addresses))).rejects.toThrow(`url: ${NOT_PUBLIC}`);
    await expect(checkHookUrl(url, NONE, leadsTo())).rejects.toThrow("url: its host has no address");
  });

  test("that does not resolve is refused", async () => {
    await expect(checkHookUrl(new URL(`http://${NO_HOST}/`), NONE)).rejects.toThrow(/^url: its host /);
  });

  test("that moves to a private address after its check is not called", async () => {
    const receiver = await receive(OK);
    const answers = [[PUBLIC], ["127.0.0.1"]];
    let questions = 0;
    const options = { resolve: async () => answers[questions++]! };
    const moved = new URL(`http://hook.example:${receiver.port}/`);
    await checkHookUrl(moved, NONE, options);
    const hook = { id: "1", url: moved.href, secret: SECRET, body: BODY, at: Date.now() };
    expect(await outcome(hook, NONE, options)).toEqual({ status: null, error: `url: ${NOT_PUBLIC}` });
    expect({ questions, connections: receiver.connections }).toEqual({ questions: 2, connections: 0 });
  });

  test("is resolved once per call, and only that address is called", async () => {
    const port = lastingPort();
    const right = await receive(OK, "127.0.0.3", port);
    const wrong = await receive(OK, "127.0.0.1", port);
    let questions = 0;
    const resolve = async (): Promise<string[]> => (questions++ === 0 ? ["127.0.0.3"] : ["127.0.0.1"]);
    const hook = {
      id: "1",
      url: `http://localhost.example:${right.port}/`,
      secret: SECRET,
      body: BODY,
      at: Date.now(),
    };
    expect(await outcome(hook, readRanges("127.0.0.3/32"), { resolve })).toEqual({ status: 200, error: null });
    expect({ questions, right: right.connections, wrong: wrong.connections }).toEqual({
      questions: 1,
      right: 1,
      wrong: 0,
    });
  });

  test("with one private address among public ones gets no connection", async () => {
    const receiver = await receive(OK);
    for (const addresses of [
      ["127.0.0.1", PUBLIC],
      [PUBLIC, "127.0.0.1"],
    ])
      expect(await call(receiver, { host: "hook.example", addresses, allowed: NONE })).toEqual({
        status: null,
        error: `url: ${NOT_PUBLIC}`,
      });
    expect(receiver.connections).toBe(0);
  });
});

describe("PERE_HOOKS_ALLOW", () => {
  test("allows its ranges and nothing else", () => {
    const allowed = readRanges(" 10.1.0.0/16,fd00:1::/32 , 192.168.7.7/32");
    for (const host of ["10.1.255.255", "[::ffff:10.1.2.3]", "[fd00:1:ffff::1]", "192.168.7.7"])
      expect(refusal(() => readHookUrl(`http://${host}/`, allowed))).toBe("taken");
    for (const host of ["10.2.0.0", "10.0.255.255", "[fd00:2::1]", "192.168.7.6", "127.0.0.1", "[::a01:203]"])
      expect(refusal(() => readHookUrl(`http://${host}/`, allowed))).toBe(`refused url: ${NOT_PUBLIC}`);
  });

  test("applies to embedded IPv4 addresses: allowing NAT64's ranges allows no further IPv4 address", () => {
    const ranges = readRanges("64:ff9b::/96,64:ff9b:1::/48,2002::/16,2001::/32");
    for (const host of ["[64:ff9b::7f00:1]", "[64:ff9b:1::a00:1]", "[2002:7f00:1::]", "[2001:0:808:808::f5ff:fffe]"])
      expect(refusal(() => readHookUrl(`http://${host}/`, ranges))).toBe(`refused url: ${NOT_PUBLIC}`);
    const office = readRanges("10.1.0.0/16");
    expect(refusal(() => readHookUrl("http://[64:ff9b::a01:203]/", office))).toBe("taken");
    expect(refusal(() => readHookUrl("http://[64:ff9b::a02:203]/", office))).toBe(`refused url: ${NOT_PUBLIC}`);
  });

  test.each([
    "10.0.0.0",
    "10.0.0.0/33",
    "10/8",
    "0x0a.0.0.0/8",
    "10.0.0.0/8;fd00::/8",
    "fd00::/129",
    "::ffff:10.0.0.0/104",
    "lan",
    "10.0.0.0/-1",
  ])("%s is invalid, in a message that names the setting", (text) => {
    expect(() => readRanges(`127.0.0.0/8,${text}`)).toThrow(
      `PERE_HOOKS_ALLOW must be ranges like 10.0.0.0/8 or fd00::/8, comma separated, not "${text}"`,
    );
  });
});

test.each([
  ["", "malformed url: must be a URL that begins with http:// or https://"],
  ["hook.example/x", "malformed url: must be a URL that begins with http:// or https://"],
  ["file:///etc/passwd", "malformed url: must be a URL that begins with http:// or https://"],
  ["unix:/run/x.sock", "malformed url: must be a URL that begins with http:// or https://"],
  ["http://256.1.1.1/", "malformed url: must be a URL that begins with http:// or https://"],
  ["http://user@hook.example/", "refused url: must not contain a user name or password"],
  ["http://:secret@hook.example/", "refused url: must not contain a user name or password"],
  [`http://hook.example/${"a".repeat(2_029)}`, "refused url: must have at most 2048 characters"],
  [`http://hook.example/${"ü".repeat(400)}`, "refused url: must have at most 2048 characters"],
  [`http://hook.example/${" ".repeat(2_100)}`, "refused url: must have at most 2048 characters"],
  [`http://hook.example/${"a".repeat(2_028)}`, "taken"],
])("a URL is read or refused, %#", (text, answer) => {
  expect(refusal(() => readHookUrl(text, NONE))).toBe(answer);
});
