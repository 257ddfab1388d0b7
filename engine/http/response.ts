/**
 * Answers in JSON, and the headers that every answer made for one request carries.
 */
/** Headers of every answer that is made for one request: it is not cached, and its type is not guessed. */
export const PLAIN = { "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff" };

/** Made once: copying a `Headers` takes a third of the time of making one. */
const JSON_HEADERS = new Headers({ "Content-Type": "application/json", ...PLAIN });

/** @param text JSON, as a string or as UTF-8 */
export const jsonText = (text: string | Uint8Array<ArrayBuffer>): Response =>
  new Response(text, { headers: JSON_HEADERS });
export const json = (body: object, status = 200, headers?: Record<string, string>): Response => {
  const response = new Response(JSON.stringify(body), { status, headers: JSON_HEADERS });
  for (const name in headers) response.headers.set(name, headers[name]!);
  return response;
};
