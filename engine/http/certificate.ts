/**
 * The certificate for TLS: two PEM files, read at the start and again after they were replaced.
 *
 * A certificate and a key that don't match are found here and reported in one sentence, not by the first browser.
 */
import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureContext } from "node:tls";

/** The paths of the files: the certificate with its chain, and its key. */
export interface CertificateFiles {
  readonly cert: string;
  readonly key: string;
}

/** The content of the files. @throws Error with the one line to print */
export function readCertificate({ cert, key }: CertificateFiles): CertificateFiles {
  const texts = { cert: read("PERE_TLS_CERT", cert), key: read("PERE_TLS_KEY", key) };
  const certificate = parsed("PERE_TLS_CERT", "certificate", () => new X509Certificate(texts.cert));
  const privateKey = parsed("PERE_TLS_KEY", "private key without a passphrase", () => createPrivateKey(texts.key));
  if (!certificate.checkPrivateKey(privateKey)) throw new Error("PERE_TLS_KEY is not the key of PERE_TLS_CERT");
  try {
    createSecureContext(texts); // As the server will do it: checks the whole chain.
  } catch (error) {
    throw new Error(`PERE_TLS_CERT can't be used: ${(error as Error).message}`);
  }
  return texts;
}

function read(name: string, path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new Error(`${name} can't be read: ${(error as Error).message}`);
  }
}

function parsed<Value>(name: string, what: string, parse: () => Value): Value {
  try {
    return parse();
  } catch {
    throw new Error(`${name} does not contain a ${what} in PEM format`);
  }
}
