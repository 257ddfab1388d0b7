#!/usr/bin/env bun
/**
 * `doctor`: checks a service from where you are, including the proxies in front of it, and prints what is wrong and what to do.
 *
 *   PERE_TOKEN=… bun run index.ts doctor https://push.example.com [--seconds 20] [--channel NAME]
 *   PERE_TOKEN=… bun clients/doctor.ts https://push.example.com
 *
 * What it checks is in doctor-checks.ts; this file reads the arguments, runs the checks in order, and prints their findings.
 */
import { networkInterfaces } from "node:os";
import { parseArgs } from "node:util";
import {
  CHANNEL,
  checkAccess,
  checkDelivery,
  checkHttp2,
  checkPush,
  checkQuiet,
  checkReachable,
  checkReceipts,
  checkToken,
  claimsOf,
  cleanUp,
  isLocal,
  type Report,
  type Target,
} from "./doctor-checks.ts";
import { fail, UsageError } from "./program.ts";

const USAGE = "usage: bun run index.ts doctor URL [--seconds N] [--channel NAME]";

const HELP = `${USAGE}

Checks a service from this machine, including the proxies in front of it.

  URL             the address of PERE, as devices use it
  --seconds N     how long quiet connections are watched, 0 to 600 (default: 20)
  --channel NAME  the channel to use (default: pere-doctor)

Environment: PERE_TOKEN is a token with push and feed on the channel. HTTP_PROXY, HTTPS_PROXY and NO_PROXY are used.
Exit code: 0, or 1 when a check failed.`;

/** How long a quiet connection is watched by default. The service sends a keep-alive every 15 s. */
const SECONDS = 20;
const SECONDS_MAX = 600;

/** Runs the checks in order. @returns whether none failed */
async function runChecks(target: Target, seconds: number, report: Report): Promise<boolean> {
  let isWell = true;
  const counted: Report = (level, finding, advice) => {
    if (level === "fail") isWell = false;
    report(level, finding, advice);
  };
  if (!(await checkReachable(target, counted))) return false;
  checkToken(target, counted);
  await checkAccess(target, counted);
  await checkHttp2(target, counted);
  if (!(await checkPush(target, counted))) return false;
  try {
    await checkDelivery(target, counted);
    await checkReceipts(target, counted);
    if (seconds > 0) await checkQuiet(target, seconds, counted);
  } finally {
    await cleanUp(target);
  }
  return isWell;
}

/** Uses no proxy for a service on this machine, even if the environment names one. */
async function bypassProxyForOwn(url: string): Promise<void> {
  const own = new Set(Object.values(networkInterfaces()).flatMap((all) => all?.map(({ address }) => address) ?? []));
  if (await isLocal(url, own)) process.env.NO_PROXY = process.env.no_proxy = "*";
}

/** A device's name, as it may appear in a URL. */
const DEVICE = /^[A-Za-z0-9._:~-]{1,128}$/;

/** The devices to check as. A token names its device; with the subject `*` its bearer chooses. @throws UsageError */
function devicesOf(token: string | undefined): Target["devices"] {
  const own = `doctor-${crypto.randomUUID()}`;
  const devices = { stream: own, socket: `${own}-socket`, poll: `${own}-poll` };
  if (token === undefined) return devices;
  let sub: unknown;
  try {
    if (!/^[A-Za-z0-9._-]+$/.test(token)) throw new Error("it has other characters");
    ({ sub } = claimsOf(token));
  } catch {
    throw new UsageError("PERE_TOKEN is not a token: set it to a JWT, which is three parts with dots between them");
  }
  if (sub === "*") return devices;
  if (typeof sub !== "string" || !DEVICE.test(sub))
    throw new UsageError(
      "PERE_TOKEN can't follow a feed, because its sub is not a device's name: use a token with one",
    );
  return { stream: sub, socket: sub, poll: sub };
}

/** Reads the arguments. @throws UsageError */
function readArgs(args: readonly string[]): { url: string; channel: string; seconds: number } {
  const parse = () => {
    try {
      const options = { seconds: { type: "string" }, channel: { type: "string" } } as const;
      return parseArgs({ args: [...args], allowPositionals: true, options });
    } catch (error) {
      throw new UsageError((error as Error).message.split(/\. |\n/, 1)[0]);
    }
  };
  const { values, positionals } = parse();
  const url = positionals[0] ?? "";
  if (positionals.length !== 1 || !/^https?:\/\/[^?#@]+$/.test(url) || !URL.canParse(url)) throw new UsageError(USAGE);
  const { seconds = String(SECONDS), channel = CHANNEL } = values;
  if (!/^[0-9]{1,9}(\.[0-9]+)?$/.test(seconds) || Number(seconds) > SECONDS_MAX)
    throw new UsageError(`--seconds must be a number from 0 to ${SECONDS_MAX}, not "${seconds}"`);
  if (!/^[A-Za-z0-9][A-Za-z0-9._:~-]{0,127}$/.test(channel))
    throw new UsageError(
      `--channel must be 1 to 128 of A-Z a-z 0-9 . _ : ~ - that begin with a letter or digit, not "${channel}"`,
    );
  return { url, channel, seconds: Number(seconds) };
}

/** `doctor URL`. @returns the exit code: 0, or 1 when a check failed @throws Error with a one-line message */
export async function doctor(args: readonly string[]): Promise<number> {
  if (args.includes("--help")) {
    console.log(HELP);
    return 0;
  }
  const { url, channel, seconds } = readArgs(args);
  const token = process.env.PERE_TOKEN?.trim() || undefined;
  await bypassProxyForOwn(url);
  const target = { url: url.replace(/\/+$/, ""), channel, token, devices: devicesOf(token), pushed: [] };
  const isWell = await runChecks(target, seconds, (level, finding, advice) => {
    console.log(`${level.padEnd(5)} ${finding}`);
    if (advice) console.log(`      → ${advice}`);
  });
  console.log(isWell ? "Nothing is wrong between here and there." : "Something is wrong: see the lines with fail.");
  return isWell ? 0 : 1;
}

if (import.meta.main && !Bun.isStandaloneExecutable)
  process.exit(await doctor(process.argv.slice(2)).catch((error: unknown) => fail("doctor", error)));
