/**
 * Answers that are not PERE's, or not whole: what proxies, captive portals, load balancers and broken servers have sent instead. The bad day gives
 * them to every client, one by one, and the real service answers again after each. Then, whatever the answer was:
 *
 * - the client goes on by itself, in the same process;
 * - no receipt is lost, and none becomes `failed` that was not;
 * - nothing is worked on, and nothing printed, that was not an event or an answer of the service;
 * - a receipt or a push counts as stored only where the answer proves it. `urn:pere:` problems alone are PERE's own refusals.
 *
 * All of it is data. `{origin}`, `{target}` and `{other}` in an answer stand for the proxy's own origin, the path and query that were asked for,
 * and an origin that nobody should ask.
 */

/** What a request is for: a feed or the receipts feed as an event stream or as a long-poll; receipts that are given; a push. */
export type Asked = "stream" | "poll" | "receipts" | "push";

export interface BadAnswer {
  readonly name: string;
  /** Which requests it is an answer to. */
  readonly to: readonly Asked[];
  /** Everything that comes, as Latin-1: a character is a byte. */
  readonly bytes: string;
  /** The line is left open behind it; else it ends. */
  readonly stays: boolean;
  /** It is given to every request that comes within this time of the first, and not to one alone; in milliseconds. */
  readonly forMs: number;
}

const ALL: readonly Asked[] = ["stream", "poll", "receipts", "push"];
const HTML = "<!doctype html><title>Sign in</title><p>Welcome to our network";
const utf8 = (text: string): string => Buffer.from(text).toString("latin1");

/** An answer to HTTP's letter. `Content-Length` is added where the headers say nothing of the body's end. */
function http(status: string, headers: readonly string[], body = ""): string {
  const says = headers.some((header) => /^(content-length|transfer-encoding):/i.test(header));
  const all = [...headers, ...(says ? [] : [`Content-Length: ${body.length}`]), "Connection: close"];
  return `HTTP/1.1 ${status}\r\n${all.join("\r\n")}\r\n\r\n${body}`;
}

const row = (
  name: string,
  to: readonly Asked[],
  bytes: string,
  { stays = false, forMs = 0 }: { stays?: boolean; forMs?: number } = {},
): BadAnswer => ({ name, to, bytes, stays, forMs });

const json = (status: string, body: string, type = "application/json"): string =>
  http(status, [`Content-Type: ${type}`], utf8(body));
const problem = (status: string, body: string): string => json(status, body, "application/problem+json");
const html = (status: string, ...headers: string[]): string =>
  http(status, ["Content-Type: text/html", ...headers], HTML);

/** Problem documents, but not PERE's; and bare refusals. */
const FOREIGN: readonly BadAnswer[] = [
  ...(
    [
      ["503 Service Unavailable", '{"title":"x"}'],
      ["503 Service Unavailable", '"down"'],
      ["503 Service Unavailable", "[]"],
      ["502 Bad Gateway", "null"],
      ["500 Internal Server Error", '{"type":5,"detail":{"a":1}}'],
      ["504 Gateway Timeout", '{"type":"urn:pere:'],
      ["404 Not Found", '{"type":"about:blank","title":"Not Found","status":404}'],
      ["404 Not Found", "{}"],
      ["400 Bad Request", "null"],
      ["400 Bad Request", '{"type":"about:blank","detail":null}'],
      ["401 Unauthorized", '{"type":"about:blank","detail":"who are you?"}'],
      ["403 Forbidden", '"blocked"'],
      ["409 Conflict", "[1]"],
      ["413 Content Too Large", '{"type":"about:blank","detail":"too large"}'],
      [
        "422 Unprocessable Content",
        '{"type":"https://example.com/no","detail":"no","rejected":[{"index":0,"reason":"no"}]}',
      ],
      ["422 Unprocessable Content", '{"type":["urn:pere:refused"],"rejected":[{"index":0,"reason":"no"}]}'],
      ["429 Too Many Requests", "7"],
    ] as const
  ).map(([status, body]) =>
    row(`a foreign problem: ${status.slice(0, 3)} ${body.slice(0, 60)}`, ALL, problem(status, body)),
  ),
  ...["400", "401", "403", "404", "405", "407", "410", "418", "422", "451", "500", "502", "511", "599"].map((status) =>
    row(`a proxy's page: ${status}`, ALL, html(`${status} No`)),
  ),
  row("a page that asks for a password", ALL, html("401 Unauthorized", 'WWW-Authenticate: Basic realm="proxy"')),
];

/** What a network answers that wants to be signed into, with a status of success. */
const PORTALS: readonly BadAnswer[] = [
  row("a portal's page", ALL, html("200 OK")),
  row("an empty page", ALL, http("200 OK", ["Content-Type: text/html"])),
  row("nothing at all, and no type", ALL, http("200 OK", [])),
  row("204", ALL, "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"),
  row("205", ALL, http("205 Reset Content", [])),
  row(
    "206 of a page",
    ALL,
    http("206 Partial Content", ["Content-Type: text/html", "Content-Range: bytes 0-61/99"], HTML),
  ),
  row("202 with a word", ALL, json("202 Accepted", '{"status":"queued"}')),
  row("304", ALL, "HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n"),
  ...['{"hello":1}', "{}", "[]", "null", "true", "7", '"ok"', "{", '{"ok":true}{"ok":true}', ""].map((body) =>
    row(`JSON of another shape: ${body}`, ALL, json("200 OK", body)),
  ),
  row("JSON of another shape: 201", ALL, json("201 Created", '{"hello":1}')),
  row("JSON that is too deep", ALL, json("200 OK", "[".repeat(100_000))),
  row("JSON that is too deep, and whole", ALL, json("200 OK", '{"a":'.repeat(20_000) + "1" + "}".repeat(20_000))),
  row("invalid UTF-8", ALL, http("200 OK", ["Content-Type: application/json"], '{"a":"\xff\xfe\xc3"}')),
  row("NUL bytes", ALL, http("200 OK", ["Content-Type: application/json"], "\0".repeat(500))),
];

/** Odd ideas of when to come back. Each must be taken for "soon". */
const LATER: readonly BadAnswer[] = [
  "99999999999",
  "9".repeat(400),
  "Fri, 31 Dec 1999 23:59:59 GMT",
  "Fri, 31 Dec 9999 23:59:59 GMT",
  "Fri, 99 Dec 2026 99:99:99 GMT",
  "\xb2",
  utf8("²"),
  utf8("٣"),
  "-5",
  "0.5",
  "1e9",
  "0x7fffffff",
  "",
  "soon",
  "NaN",
  "Infinity",
  "0, 99999999999",
].map((value) => row(`Retry-After: ${value.slice(0, 40)}`, ALL, html("503 Not Now", `Retry-After: ${value}`)));

const REDIRECTS: readonly BadAnswer[] = [
  ...["301", "302", "303", "307", "308"].map((status) =>
    row(`${status} to another origin`, ALL, html(`${status} Elsewhere`, "Location: {other}{target}")),
  ),
  row("302 to a page of the same origin", ALL, html("302 Found", "Location: {origin}/login?next={target}")),
  row("301 to the same address", ALL, html("301 Moved", "Location: {origin}{target}")),
  row("303 to the same address", ALL, html("303 See Other", "Location: {target}")),
  row("307 to the same address", ALL, html("307 Temporary", "Location: {origin}{target}")),
  row("308 to the same address, without its origin", ALL, html("308 Permanent", "Location: {target}")),
  row("307 in a loop", ALL, html("307 Temporary", "Location: {target}"), { forMs: 500 }),
  row("307 to no address", ALL, html("307 Temporary", "Location: http://[")),
  row("307 to a file", ALL, html("307 Temporary", "Location: file:///etc/hostname")),
  row("308 without an address", ALL, html("308 Permanent")),
  row("302 without an address", ALL, html("302 Found")),
  row("300", ALL, html("300 Multiple Choices")),
];

/** HTTP that is none. */
const BROKEN: readonly BadAnswer[] = [
  row("nothing, and the end", ALL, ""),
  row("a status line that is cut", ALL, "HTTP/1.1 20"),
  row("a head that is cut", ALL, "HTTP/1.1 200 OK\r\nContent-Type: applic"),
  row(
    "a body that is cut",
    ALL,
    http("200 OK", ["Content-Type: application/json", "Content-Length: 5000"], '{"recorded":1,'),
  ),
  row(
    "a Content-Length that is none",
    ALL,
    http("200 OK", ["Content-Type: application/json", "Content-Length: many"], "{}"),
  ),
  row("a negative Content-Length", ALL, http("200 OK", ["Content-Type: application/json", "Content-Length: -1"], "{}")),
  row("two Content-Lengths", ALL, http("200 OK", ["Content-Length: 2", "Content-Length: 9"], "{}")),
  row(
    "chunks that are none",
    ALL,
    http("200 OK", ["Content-Type: text/event-stream", "Transfer-Encoding: chunked"], "zz\r\nx\r\n"),
  ),
  row(
    "a chunk without an end",
    ALL,
    http("200 OK", ["Content-Type: application/json", "Transfer-Encoding: chunked"], "ffff\r\n{"),
  ),
  row(
    "gzip that is none",
    ALL,
    http("200 OK", ["Content-Type: application/json", "Content-Encoding: gzip"], "\x1f\x8b\x08junk"),
  ),
  row(
    "an event stream of gzip that is none",
    ALL,
    http("200 OK", ["Content-Type: text/event-stream", "Content-Encoding: gzip"], "junk"),
  ),
  row("100 alone", ALL, "HTTP/1.1 100 Continue\r\n\r\n"),
  row("103, and a page", ALL, `HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n${html("200 OK")}`),
  row(
    "101 that nobody asked for",
    ALL,
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n\0\0\0",
  ),
  row(
    "100,000 headers",
    ALL,
    http(
      "200 OK",
      Array.from({ length: 100_000 }, (_, n) => `X-${n}: 1`),
      "{}",
    ),
  ),
  row("a header of a megabyte", ALL, http("200 OK", [`X-Long: ${"x".repeat(1_000_000)}`], "{}")),
  row("a TLS alert", ALL, "\x15\x03\x01\x00\x02\x02\x16"),
  row("another protocol", ALL, "SSH-2.0-OpenSSH_9.6\r\n"),
  row("a status that is none", ALL, "HTTP/1.1 abc OK\r\n\r\n{}"),
  row("HTTP/9.9", ALL, "HTTP/9.9 200 OK\r\n\r\n{}"),
];

/** Answers to receipts that prove nothing. A client sends one receipt or several; no request of these tests has a thousand. */
const RECEIPTS: readonly BadAnswer[] = [
  '{"recorded":"1","duplicate":0,"rejected":[]}',
  '{"recorded":"1"}',
  '{"recorded":1}',
  '{"recorded":0,"duplicate":0,"rejected":[]}',
  '{"recorded":5000,"duplicate":0,"rejected":[]}',
  '{"recorded":-1,"duplicate":2,"rejected":[]}',
  '{"recorded":0.5,"duplicate":0.5,"rejected":[]}',
  '{"recorded":1e400,"duplicate":0,"rejected":[]}',
  '{"recorded":null,"duplicate":null,"rejected":null}',
  '{"rejected":null}',
  '{"rejected":[]}',
  '{"rejected":[{}]}',
  '{"recorded":0,"duplicate":0,"rejected":null}',
  '{"recorded":0,"duplicate":0,"rejected":{}}',
  '{"recorded":0,"duplicate":0,"rejected":"x"}',
  '{"recorded":0,"duplicate":0,"rejected":[{}]}',
  '{"recorded":0,"duplicate":0,"rejected":[null]}',
  '{"recorded":0,"duplicate":0,"rejected":[[]]}',
  '{"recorded":0,"duplicate":0,"rejected":[{"index":"0","event":"a-1","reason":"no"}]}',
  '{"recorded":0,"duplicate":0,"rejected":[{"index":-1,"event":"a-1","reason":"no"}]}',
  '{"recorded":0,"duplicate":0,"rejected":[{"index":1000,"event":"a-1","reason":"no"}]}',
  '{"recorded":0,"duplicate":0,"rejected":[{"index":1e308,"event":"a-1","reason":"no"}]}',
  '{"recorded":0,"duplicate":0,"rejected":[{"index":0.5,"event":"a-1","reason":"no"}]}',
  '{"recorded":0,"duplicate":0,"rejected":[{"index":0,"event":"a-1","reason":"of another event"}]}',
  '{"recorded":0,"duplicate":0,"rejected":[{"index":0,"reason":null}]}',
  '{"recorded":0,"duplicate":0,"rejected":[{"index":0,"event":5,"reason":5}]}',
  '{"recorded":1,"duplicate":0,"rejected":[],"late":null}',
  '{"recorded":1,"duplicate":0,"rejected":[],"late":[{}]}',
  '{"recorded":1,"duplicate":0,"rejected":[],"late":[{"index":0,"event":"a-1","reason":"withdrawn"}]}',
  '{"recorded":1,"duplicate":0,"rejected":[],"late":[{"index":7,"event":"a-1","reason":5}]}',
]
  .map((body) => row(`receipts: ${body}`, ["receipts"], json("200 OK", body)))
  .concat([
    row(
      "receipts: a good body with 202",
      ["receipts"],
      json("202 Accepted", '{"recorded":1,"duplicate":0,"rejected":[]}'),
    ),
    row(
      "receipts: a good body of a page",
      ["receipts"],
      json("502 Bad Gateway", '{"recorded":1,"duplicate":0,"rejected":[]}'),
    ),
    row(
      "receipts: PERE's refusal in the name of a gateway",
      ["receipts"],
      problem(
        "502 Bad Gateway",
        '{"type":"urn:pere:refused","status":422,"rejected":[{"index":0,"event":"a-1","reason":"no"}]}',
      ),
    ),
    row(
      "receipts: PERE's refusal of others",
      ["receipts"],
      problem(
        "422 Unprocessable Content",
        '{"type":"urn:pere:refused","status":422,"detail":"no","recorded":0,"duplicate":0,"rejected":[{"index":999,"event":"a-1","reason":"no"}]}',
      ),
    ),
    row(
      "receipts: nothing there, says another PERE",
      ["receipts"],
      problem(
        "404 Not Found",
        '{"type":"urn:pere:unknown","status":404,"detail":"there is nothing at /pere/feedback/orders"}',
      ),
    ),
    row(
      "receipts: not by this method, says PERE",
      ["receipts"],
      problem(
        "405 Method Not Allowed",
        '{"type":"urn:pere:wrongMethod","status":405,"detail":"/feedback/orders does not take PATCH"}',
      ),
    ),
    row(
      "receipts: an internal error of PERE",
      ["receipts"],
      problem("500 Internal Server Error", '{"type":"urn:pere:inside","status":500}'),
    ),
  ]);

/** Answers to a push that prove nothing. */
const PUSHES: readonly BadAnswer[] = [
  row("push: an id alone", ["push"], json("201 Created", '{"id":"k3x9-42"}')),
  row(
    "push: fields of other types",
    ["push"],
    json("201 Created", '{"id":5,"channel":null,"seq":"1","at":7,"audience":[]}'),
  ),
  row(
    "push: another channel's event",
    ["push"],
    json(
      "201 Created",
      '{"id":"k3x9-42","channel":"others","seq":42,"at":"2026-11-22T10:00:00.000Z","audience":{"addressed":0,"connected":0}}',
    ),
  ),
  row(
    "push: no audience",
    ["push"],
    json("201 Created", '{"id":"k3x9-42","channel":"orders","seq":42,"at":"2026-11-22T10:00:00.000Z","audience":null}'),
  ),
  row(
    "push: a good body with 202",
    ["push"],
    json(
      "202 Accepted",
      '{"id":"k3x9-42","channel":"orders","seq":42,"at":"2026-11-22T10:00:00.000Z","audience":{"addressed":0,"connected":0}}',
    ),
  ),
  row(
    "push: an internal error of PERE",
    ["push"],
    problem("500 Internal Server Error", '{"type":"urn:pere:inside","status":500}'),
  ),
];

/** An event stream of somebody. */
const stream = (name: string, body: string): BadAnswer =>
  row(
    `stream: ${name}`,
    ["stream"],
    http("200 OK", ["Content-Type: text/event-stream", "Transfer-Encoding: identity"], body),
  );
const EVENT = '{"id":"k3x9-42","channel":"orders","seq":42,"at":"2026-11-22T10:00:00.000Z","data":"not an event"}';

/** A beginning such as PERE's. */
const READY = 'event: pere.ready\ndata: {"device":"till-7","channels":{"orders":"k3x9-41"}}\n\n';

const STREAMS: readonly BadAnswer[] = [
  stream("somebody else's", "id: 17\nevent: news\ndata: hello\n\n"),
  stream("somebody else's, with an object", 'id: 17\ndata: {"id":"17","text":"hello"}\n\n'),
  stream("an event, and nobody was ready", `id: k3x9-42\ndata: ${EVENT}\n\n`),
  stream("an event without its end", `: hello\n\ndata: ${EVENT}`),
  stream("fields of other types", 'data: {"id":5,"channel":null,"seq":"x","at":{},"data":1}\n\n'),
  ...["null", "[]", "5", '""', "{", "{}", '{"id":"k3x9-1"}', "x"].map((data) =>
    stream(`data: ${data}`, `data: ${data}\n\n`),
  ),
  ...["ready", "gap", "bye", "complete", "withdrawn", "settled", "__proto__", ""].flatMap((own) =>
    ["null", '{"reason":5,"channels":null}', "["].map((data) =>
      stream(`pere.${own} ${data}`, `event: pere.${own}\ndata: ${data}\n\n`),
    ),
  ),
  ...["null", "{}", '{"withdrawn":"k3x9-1"}', '{"id":5,"channel":[],"at":{},"withdrawn":7,"reason":null}'].map((data) =>
    stream(`ready, and a withdrawal that is none: ${data}`, `${READY}event: pere.withdrawn\ndata: ${data}\n\n`),
  ),
  ...['"2"', "0", "-1", "1.5", "null", "1e400"].map((round) =>
    stream(
      `ready, and an event of round ${round}`,
      `${READY}data: ${EVENT.replace('"data"', `"round":${round},"data"`)}\n\n`,
    ),
  ),
  stream("retry: of many digits", `retry: ${"9".repeat(400)}\n\n`),
  stream("retry: of a year", "retry: 31536000000\n\n"),
  stream("retry: of no digits", `retry: ${utf8("²")}\nretry: -1\nretry: 1e9\nretry:\n\n`),
  stream("invalid UTF-8", 'data: {"id":"\xff\xfe"}\n\nid: \xc3\n\n'),
  stream("NUL bytes", "id: a\0b\ndata: \0\0\0\n\n\0\0\0"),
  stream("a line of a megabyte", `data: ${"x".repeat(1_000_000)}\n\n`),
  stream("10,000 lines of one event", `${"data: x\n".repeat(10_000)}\n`),
  stream("a deep one", `data: ${"[".repeat(50_000)}\n\n`),
  stream(
    "keys that come twice",
    'data: {"id":"k3x9-1","id":null,"channel":"orders","channel":7,"seq":1,"at":"","data":1}\n\n',
  ),
  row("stream: of another type", ["stream"], http("200 OK", ["Content-Type: text/plain"], `data: ${EVENT}\n\n`)),
  row("stream: of no type", ["stream"], http("200 OK", [], `data: ${EVENT}\n\n`)),
  row(
    "stream: with 203",
    ["stream"],
    http("203 Non-Authoritative", ["Content-Type: text/event-stream"], `data: ${EVENT}\n\n`),
  ),
  row(
    "stream: of a type that begins alike",
    ["stream"],
    http("200 OK", ["Content-Type: text/event-streams"], `data: ${EVENT}\n\n`),
  ),
];

const POLLS: readonly BadAnswer[] = [
  '{"events":null,"last":"k3x9-42"}',
  '{"events":{},"last":"k3x9-42"}',
  '{"events":[],"last":null}',
  '{"events":[],"last":5}',
  '{"events":[]}',
  '{"last":"k3x9-42"}',
  '{"events":[null],"last":"k3x9-42"}',
  '{"events":[5,"x"],"last":"k3x9-42"}',
  '{"events":[{}],"last":"k3x9-42"}',
  '{"events":[{"id":5,"channel":7,"data":null}],"last":"k3x9-42"}',
  '{"events":[{"id":"k3x9-42","channel":"orders"}],"last":"k3x9-42"}',
  `{"events":[${EVENT}],"last":"k3x9-`,
  `{"events":[${EVENT}`,
  '{"events":[],"last":"k3x9-42","gaps":5,"complete":{}}',
  '{"events":[],"last":"k3x9-42","gaps":[null],"complete":[null]}',
  '{"events":[],"last":"k3x9-42","withdrawn":[null]}',
  '{"events":[],"last":"k3x9-42","withdrawn":[{}]}',
  '{"events":[],"last":"k3x9-42","withdrawn":[{"id":5,"withdrawn":["k3x9-1"]}]}',
  `{"events":[${EVENT.replace('"data"', '"round":"2","data"')}],"last":"k3x9-42"}`,
  '{"events":[],"last":"a\\r\\nX-Injected: 1"}',
  `{"events":[${"[".repeat(20_000)}`,
].map((body) => row(`poll: ${body.slice(0, 70)}`, ["poll"], json("200 OK", body)));

/** All of them. */
export const BAD_ANSWERS: readonly BadAnswer[] = [
  ...FOREIGN,
  ...PORTALS,
  ...LATER,
  ...REDIRECTS,
  ...BROKEN,
  ...RECEIPTS,
  ...PUSHES,
  ...STREAMS,
  ...POLLS,
];
