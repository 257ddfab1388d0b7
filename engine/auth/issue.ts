/**
 * Issues tokens: for `bun run index.ts token`, and for the link that the service prints at startup.
 *
 * Only the owner of the secret can issue tokens, and only tokens that this PERE accepts: names, patterns and lengths are checked as they are when a
 * token is read.
 */
import { parseArgs } from "node:util";
import { SignJWT } from "jose";
import { type AccessOptions, NO_DEVICE, TOKEN_BYTES_MAX } from "./tokens.ts";
import { secretKey } from "./key-set.ts";
import { DEVICE } from "../model.ts";
import { readRights } from "./rights.ts";

/** A token that is valid for ten years is a password. */
const DAYS_MAX = 3_660;
const DAYS_DEFAULT = 30;
const DAY_SECONDS = 24 * 3600;

/** What a token allows, to whom, and for how many days. */
export interface TokenDraft {
  /** A device's name, any text if the token does not allow `feed`, or `NO_DEVICE`. */
  readonly sub: string;
  readonly push: readonly string[];
  readonly feed: readonly string[];
  readonly days: number;
}

/**
 * A token signed with the configured secret, with the `aud` and `iss` that this PERE requires.
 * @throws Error with a one-line message: PERE would not accept such a token
 */
export async function issueToken(
  { secret, audience, issuer, now = Date.now }: Pick<AccessOptions, "secret" | "audience" | "issuer" | "now">,
  { sub, push, feed, days }: TokenDraft,
): Promise<string> {
  if (secret === undefined) throw new Error("set PERE_JWT_SECRET: tokens are signed with it");
  if (sub === "") throw new Error("--sub must not be empty");
  if (sub !== NO_DEVICE && feed.length > 0 && !DEVICE.test(sub))
    throw new Error("--sub must be a device's name where --feed is given, 1 to 128 of A-Z a-z 0-9 . _ : ~ -");
  if (!(days > 0 && days <= DAYS_MAX)) throw new Error(`--days must be a number above 0, up to ${DAYS_MAX}`);
  const pere = { push, feed };
  const rights = readRights(pere);
  if (typeof rights === "string") throw new Error(rights);
  const at = Math.floor(now() / 1000);
  const draft = new SignJWT({ pere })
    .setProtectedHeader({ alg: "HS256", typ: "JWT" })
    .setSubject(sub)
    .setIssuedAt(at)
    .setExpirationTime(at + Math.ceil(days * DAY_SECONDS));
  if (audience !== undefined) draft.setAudience(audience);
  if (issuer !== undefined) draft.setIssuer(issuer);
  const token = await draft.sign(await secretKey(secret));
  if (token.length > TOKEN_BYTES_MAX) throw new Error(`the token would be longer than ${TOKEN_BYTES_MAX} bytes`);
  return token;
}

/**
 * The arguments of `bun run index.ts token`: `--push` and `--feed` take patterns, separated by commas, and may be repeated.
 * @throws Error with a one-line message
 */
export function readTokenDraft(argv: readonly string[]): TokenDraft {
  const list = { type: "string", multiple: true } as const;
  const { values } = parseArgs({
    args: [...argv],
    options: { push: list, feed: list, sub: { type: "string" }, days: { type: "string" } },
  });
  const { sub, days = String(DAYS_DEFAULT) } = values;
  if (sub === undefined) throw new Error("--sub is required: the name of the device or person the token is for");
  if (!values.push && !values.feed) throw new Error("--push or --feed is required: the channels that the token allows");
  if (!/^\d{1,6}(\.\d{1,6})?$/.test(days)) throw new Error(`--days must be a number above 0, up to ${DAYS_MAX}`);
  const patterns = (texts: readonly string[] = []): string[] => texts.flatMap((text) => text.split(","));
  return { sub, push: patterns(values.push), feed: patterns(values.feed), days: Number(days) };
}
