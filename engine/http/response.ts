/**
 * Answers in JSON, and the headers that every answer made for one request carries.
 */
/** What every answer carries that is made for this request: nobody keeps it, nobody takes it for something else. */
export const PLAIN = { "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff" };

/** Made once: a `Headers` is copied in a third of the time that it takes to make one. */
const JSON_HEADERS = new Headers({ "Content-Type": "application/json", ...PLAIN });

export const jsonText = (text: string): Response => new Response(text, { headers: JSON_HEADERS });
export const json = (body: object, status = 200, headers?: Record<string, string>): Response => {
  const response = new Response(JSON.stringify(body), { status, headers: JSON_HEADERS });
  for (const name in headers) response.headers.set(name, headers[name]!);
  return response;
};
