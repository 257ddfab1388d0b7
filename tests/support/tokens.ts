/**
 * Tokens for tests: good ones and forged ones, the keys that they are signed with, and a reader that knows these keys.
 */
import { expect } from "bun:test";
import { createHmac } from "node:crypto";
import { join } from "node:path";
import { type JWK, SignJWT, exportJWK, generateKeyPair } from "jose";
import { type Access, type AccessOptions, openAccess } from "../../engine/auth/tokens.ts";
import { PereError } from "../../engine/model.ts";
import { temporary } from "./harness.ts";

export const SECRET = "a secret of thirty-two bytes, ok";
export const NOW = Date.UTC(2026, 10, 22, 10);
export const SECONDS = NOW / 1000;
export const now = (): number => NOW;
export const CLAIMS = { sub: "till-7", exp: SECONDS + 3600, pere: { push: ["orders", "shop.*"], feed: ["orders"] } };

export const base64url = (bytes: string | Uint8Array): string => Buffer.from(bytes).toString("base64url");
/** A part of a token: a value, or the text that stands for it. */
export const part = (value: unknown): string => base64url(typeof value === "string" ? value : JSON.stringify(value));

/** A token by hand: whatever header and claims, signed over their encoded texts. */
export function forge(header: unknown, claims: unknown, signer: (input: string) => Uint8Array): string {
  const input = `${part(header)}.${part(claims)}`;
  return `${input}.${base64url(signer(input))}`;
}
export const hmac =
  (key: string | Uint8Array, hash = "sha256") =>
  (input: string): Uint8Array =>
    createHmac(hash, key).update(input).digest();
/** A token that the secret signed, with these claims besides or instead. */
export const signed = (claims: object = {}, header: object = {}): string =>
  forge({ alg: "HS256", ...header }, { ...CLAIMS, ...claims }, hmac(SECRET));

/** What a call is refused with; a token that is taken, or an error that is not of the house, fails the test. */
export async function refusal(call: Promise<unknown>): Promise<PereError> {
  const error = await call.then(
    () => new Error("it was taken"),
    (error: unknown) => error,
  );
  if (error instanceof PereError) return error;
  throw error;
}
/** Why a token is refused as such. */
export async function whyNot(access: Access, token: string): Promise<string> {
  const { code, message } = await refusal(access.read(token));
  expect(code).toBe("unauthorized");
  return message;
}

export const pairs = {
  EdDSA: await generateKeyPair("EdDSA", { extractable: true }),
  ES256: await generateKeyPair("ES256", { extractable: true }),
  RS256: await generateKeyPair("RS256", { extractable: true }),
};
export type Algorithm = keyof typeof pairs;
export const ALGORITHMS = Object.keys(pairs) as Algorithm[];
export const publicJwk = async (algorithm: Algorithm, more: object = {}): Promise<JWK> => ({
  ...(await exportJWK(pairs[algorithm].publicKey)),
  kid: algorithm,
  ...more,
});
export const jwks = { keys: await Promise.all(ALGORITHMS.map((algorithm) => publicJwk(algorithm))) };

export const folder = temporary();
let files = 0;
export async function file(content: unknown): Promise<string> {
  const path = join(folder, `keys-${++files}.json`);
  await Bun.write(path, typeof content === "string" ? content : JSON.stringify(content));
  return path;
}
export const bySet = (algorithm: Algorithm, claims: object = {}, header: object = {}): Promise<string> =>
  new SignJWT({ ...CLAIMS, ...claims })
    .setProtectedHeader({ alg: algorithm, kid: algorithm, ...header })
    .sign(pairs[algorithm].privateKey);

export const open = (options: Partial<AccessOptions> = {}): Promise<Access> =>
  openAccess({ secret: SECRET, now, ...options });
export const access = await open({ jwks: await file(jwks) });
