/**
 * Making tokens: what `bun run index.ts token` prints, and the way in that the service prints itself.
 *
 * A token is made only where the secret is, and only such as this PERE would take: names, patterns and length are checked as they are
 * when one is read.
 */
import { parseArgs } from "node:util";
import { SignJWT } from "jose";
import { type AccessOptions, NO_DEVICE, TOKEN_BYTES_MAX } from "./tokens.ts";
import { secretKey } from "./key-set.ts";
import { DEVICE } from "../model.ts";
import { readRights } from "./rights.ts";

/** A token on paper for ten years is a password. */
const DAYS_MAX = 3_660;
const DAYS_DEFAULT = 30;
const DAY_SECONDS = 24 * 3600;

/** What a token is to allow, to whom, and for how many days. */
export interface TokenDraft {
  /** A device's name, any text where nothing is to be followed, or `NO_DEVICE`. */
  readonly sub: string;
  readonly push: readonly string[];
  readonly feed: readonly string[];
  readonly days: number;
}

/**
 * A token signed with the configured secret, with the `aud` and `iss` that this PERE asks for.
 * @throws Error with the one line to print, when no PERE would take such a token
 */
export async function issueToken(
  { secret, audience, issuer, now = Date.now }: Pick<AccessOptions, "secret" | "audience" | "issuer" | "now">,
  { sub, push, feed, days }: TokenDraft,
): Promise<string> {
  if (secret === undefined) throw new Error("a token can be made where PERE_JWT_SECRET is set");
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
 * The arguments of `bun run index.ts token`: `--push` and `--feed` take patterns, comma separated, and may be repeated.
 * @throws Error with the one line to print
 */
export function readTokenDraft(argv: readonly string[]): TokenDraft {
  const list = { type: "string", multiple: true } as const;
  const { values } = parseArgs({
    args: [...argv],
    options: { push: list, feed: list, sub: { type: "string" }, days: { type: "string" } },
  });
  const { sub, days = String(DAYS_DEFAULT) } = values;
  if (sub === undefined) throw new Error("--sub must say whom the token is for");
  if (!values.push && !values.feed) throw new Error("--push or --feed must say what the token allows");
  if (!/^\d{1,6}(\.\d{1,6})?$/.test(days)) throw new Error(`--days must be a number above 0, up to ${DAYS_MAX}`);
  const patterns = (texts: readonly string[] = []): string[] => texts.flatMap((text) => text.split(","));
  return { sub, push: patterns(values.push), feed: patterns(values.feed), days: Number(days) };
}
