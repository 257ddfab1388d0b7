/**
 * The AsyncAPI document is held to the service, and the service to the document: it is valid by AsyncAPI's own parser, its schemas are OpenAPI's, and what a running service says
 * on every stream and socket that it names is, frame by frame, one of its messages. The story is the one that the OpenAPI document's examples tell, so each example is what was
 * really said, letter by letter.
 */
import { expect, spyOn, test } from "bun:test";
import { Parser } from "@asyncapi/parser";
import Ajv from "ajv";
import packageJson from "../package.json";
import { issueToken } from "../engine/auth/issue.ts";
import { readRanges } from "../engine/addresses.ts";
import { PereError } from "../engine/model.ts";
import { SqliteStore } from "../engine/sqlite/store.ts";
import { SAMPLE_EPOCH, SAMPLE_TIME_MS, samples } from "../web/openapi-schemas.ts";
import { strictCopy } from "./support/described.ts";
import { ask, connect, listen, openStream, SECRET, start, startWith, type Stream, until } from "./support/harness.ts";

interface Pointer {
  readonly $ref: string;
}
/** What came, or is said to come: a frame's fields and its data, or a socket's message. */
interface Said {
  readonly headers?: Record<string, unknown>;
  readonly payload: Record<string, unknown>;
}
interface Message {
  readonly headers?: object;
  readonly payload: object;
  readonly examples: Said[];
}
interface Channel {
  readonly address: string;
  readonly servers: Pointer[];
  readonly messages: Record<string, Pointer>;
}
interface Operation {
  readonly action: "send" | "receive";
  readonly channel: Pointer;
  readonly messages: Pointer[];
  readonly reply?: { readonly messages: Pointer[] };
}
interface Document {
  readonly info: { readonly version: string };
  readonly channels: Record<string, Channel>;
  readonly operations: Record<string, Operation>;
  readonly components: { readonly messages: Record<string, Message>; readonly schemas: Record<string, object> };
}

const last = ({ $ref }: Pointer): string => $ref.split("/").at(-1)!;

/** The document as it is served. */
async function served(): Promise<{
  text: string;
  document: Document;
  openapi: { components: Document["components"] };
}> {
  const pere = await start();
  const { text, body } = await ask(`${pere.url}/asyncapi.json`);
  const openapi = (await ask(`${pere.url}/swagger/json`)).body;
  await pere.stop();
  return { text, document: body as Document, openapi };
}
const { text, document, openapi } = await served();

const ajv = new Ajv({ strict: false, validateFormats: false });
ajv.addSchema(strictCopy(document) as object, "document");
const fits = (pointer: string, value: unknown): boolean => ajv.getSchema(`document#${pointer}`)!(value) as boolean;
/** Which of these messages it is. */
const namesOf = ({ headers, payload }: Said, names: readonly string[]): string[] =>
  names.filter((name) => {
    const at = `/components/messages/${name}`;
    const hasFields = document.components.messages[name]!.headers !== undefined;
    return (
      hasFields === (headers !== undefined) &&
      fits(`${at}/payload`, payload) &&
      (!hasFields || fits(`${at}/headers`, headers))
    );
  });

test("the document is valid AsyncAPI 3.0 and has PERE's version", async () => {
  const { document: parsed, diagnostics } = await new Parser().parse(text);
  expect(parsed?.version()).toBe("3.0.0");
  expect(document.info.version).toBe(packageJson.version);
  // It is 3.0 because tools that read 3.1 are few yet.
  expect(diagnostics.filter(({ code }) => code !== "asyncapi-latest-version")).toEqual([]);
});

test("its schemas are those of the OpenAPI document, and all are used", () => {
  const { schemas } = document.components;
  expect(Object.keys(schemas)).toContain("Receipt");
  for (const [name, schema] of Object.entries(schemas)) {
    expect(schema).toEqual(openapi.components.schemas[name]!);
    expect(text).toContain(`"#/components/schemas/${name}"`);
  }
});

test("each message belongs to a channel, and its examples match only its own schema", () => {
  const inUse = new Set<string>();
  for (const [key, channel] of Object.entries(document.channels)) {
    const own = Object.values(document.operations).filter((operation) => last(operation.channel) === key);
    const moved = own.flatMap(({ messages, reply }) => [...messages, ...(reply?.messages ?? [])]);
    const names = Object.values(channel.messages).map(last);
    expect(new Set(moved.map(last))).toEqual(new Set(names));
    for (const name of names) {
      inUse.add(name);
      const { examples } = document.components.messages[name]!;
      expect(examples.length, name).toBeGreaterThan(0);
      for (const example of examples) expect(namesOf(example, names)).toEqual([name]);
    }
  }
  expect([...inUse].toSorted()).toEqual(Object.keys(document.components.messages).toSorted());
});

// ------------------------------------------------------------------------------------------------------- a running service

type Socket = Awaited<ReturnType<typeof connect>>;
/** Every stream and socket of the document, each with its channel there. */
interface Listening {
  readonly streams: [key: string, stream: Stream][];
  readonly sockets: [key: string, socket: Socket][];
}
const keysOf = (server: string): string[] =>
  Object.keys(document.channels).filter((key) => last(document.channels[key]!.servers[0]!) === server);

/** Opens each of them twice: as one who is new, and, where there are positions, as one who comes with a position of another life of the channel. */
async function listenEverywhere(urlOf: (key: string, more: string) => string): Promise<Listening> {
  const listening: Listening = { streams: [], sockets: [] };
  for (const more of ["", `&last-event-id=${samples.gap.after}`]) {
    const isBack = more !== "";
    for (const key of keysOf("http")) {
      if (isBack && key === "watchStream") continue;
      const stream = await openStream(urlOf(key, key === "watchStream" ? "&channel=orders" : more));
      listening.streams.push([key, stream]);
      await (isBack ? stream.own("gap") : until(() => stream.messages.length > 0, key));
    }
    for (const key of keysOf("websocket")) {
      const socket = await connect(urlOf(key, more));
      listening.sockets.push([key, socket]);
      if (isBack) await until(() => socket.messages.some(({ pere }) => pere === "gap"), `a gap on ${key}`);
    }
  }
  return listening;
}

/** Sends what the service takes on a socket, by the document's examples, and then something that it does not; each is answered as described. */
async function sendExamples({ sockets }: Listening, real: (text: string) => string): Promise<void> {
  for (const [name, { action, channel, messages, reply }] of Object.entries(document.operations)) {
    if (action === "send") continue;
    const [, { socket, messages: heard }] = sockets.find(([key]) => key === last(channel))!;
    const [good, bad] = reply!.messages.map(last);
    const send = async (payload: unknown, answer: string): Promise<void> => {
      const before = heard.length;
      socket.send(real(JSON.stringify(payload)));
      const answered = () => heard.slice(before).some((said) => namesOf({ payload: said }, [answer]).length === 1);
      await until(answered, () => `${answer} to ${name}; came: ${JSON.stringify(heard.slice(before))}`);
    };
    for (const { payload } of messages.flatMap((message) => document.components.messages[last(message)]!.examples))
      await send(payload, good!);
    await send({ pere: "token", token: "x" }, bad!);
  }
}

/** All that came, each with its channel. */
const cameOn = ({ streams, sockets }: Listening): (readonly [key: string, said: Said])[] => [
  ...streams.flatMap(([key, { messages }]) =>
    messages.map(({ id, event, data }) => [key, { headers: { id, event }, payload: JSON.parse(data) }] as const),
  ),
  ...sockets.flatMap(([key, { messages }]) => messages.map((payload) => [key, { payload }] as const)),
];

/** One order of the story, from the first feed to the service's end. @returns all that came, with ids as the examples have them */
async function play(): Promise<(readonly [key: string, said: Said])[]> {
  const now = (): number => SAMPLE_TIME_MS;
  const pere = await startWith({ proxies: readRanges("127.0.0.1/32") }, { now });
  const rights = { push: ["orders"], feed: ["orders"], days: 1 };
  const token = await issueToken({ secret: SECRET, now }, { sub: samples.device, ...rights });
  const listening = await listenEverywhere(
    (key, more) => `${pere.url}${document.channels[key]!.address.replace("{channel}", "orders")}?token=${token}${more}`,
  );
  // The device opens another feed, from elsewhere.
  const twin = await listen(`${pere.url}/feed/orders?token=${token}`, {
    "X-Forwarded-For": samples.shared.addresses[1]!,
  });
  await twin.own("shared").finally(() => twin.close());
  const options = `type=${samples.type}&to=${samples.device}&ttl=3600&deadline=600&token=${token}`;
  const pushed = await ask(`${pere.url}/push/orders?${options}`, { body: samples.order });
  const epoch = (pushed.body.id as string).split("-")[0]!;
  const order = ([, { payload }]: readonly [string, Said]) => payload.id === pushed.body.id;
  await until(() => cameOn(listening).filter(order).length === 4, "the order, on each feed of events");
  const sample = document.components.messages.freshToken!.examples[0]!.payload.token as string;
  await sendExamples(listening, (text) => text.replaceAll(SAMPLE_EPOCH, epoch).replace(sample, token));
  const complete = ([key, { payload }]: readonly [string, Said]) =>
    key.startsWith("receipt") && payload.complete === true;
  // Complete and settled.
  await until(() => cameOn(listening).filter(complete).length === 8, "complete, on each receipts feed");
  const { id: twice } = (await ask(`${pere.url}/push/orders?to=${samples.device}&token=${token}`, { body: {} })).body;
  const other = ([key, { payload }]: readonly [string, Said]) => key.startsWith("event") && payload.id === twice;
  await until(
    () => cameOn(listening).filter(other).length === 4,
    () => `another order; came: ${JSON.stringify(cameOn(listening).filter(other))}`,
  );
  const note = encodeURIComponent(samples.withdrawn.note);
  await ask(`${pere.url}/events/orders/${twice}?note=${note}&token=${token}`, { method: "DELETE" });
  await until(
    () => cameOn(listening).filter(([, { payload }]) => payload.note === samples.withdrawn.note).length === 8,
    "that it is withdrawn, on each feed",
  );

  // The store goes away for a moment, and at last the service.
  const away = spyOn(SqliteStore.prototype, "channels").mockImplementation(() => {
    throw new PereError("away", "the store can't be read now");
  });
  const [, watching] = listening.streams.find(([key]) => key === "watchStream")!;
  await watching.own("away").finally(() => away.mockRestore());
  await pere.stop();
  await until(() => listening.streams.every(([, { ended }]) => ended), "the streams' end");
  for (const [, { closed }] of listening.sockets) expect((await closed).code).toBe(1012);
  return JSON.parse(JSON.stringify(cameOn(listening)).replaceAll(epoch, SAMPLE_EPOCH)) as [string, Said][];
}

test("every frame of a running service is described, and every described message is sent, as in the examples", async () => {
  const came = await play();
  const seen = new Set<string>();
  for (const [key, said] of came) {
    const found = namesOf(said, Object.values(document.channels[key]!.messages).map(last));
    expect(found, `${key}: ${JSON.stringify(said)}`).toHaveLength(1);
    seen.add(`${key} ${found[0]}`);
  }
  const operations = Object.values(document.operations);
  const sent = operations.flatMap(({ action, channel, messages, reply }) =>
    [...(action === "send" ? messages : []), ...(reply?.messages ?? [])].map(
      (name) => `${last(channel)} ${last(name)}`,
    ),
  );
  expect([...seen].toSorted()).toEqual([...new Set(sent)].toSorted());

  const taken = operations.flatMap(({ action, messages }) => (action === "receive" ? messages.map(last) : []));
  // How things stand when the whole story was told is held to the letter in `openapi.test.ts`.
  const elsewhere = [...taken, "overviewFrame", "troubleFrame", "changesFrame"];
  for (const [name, { examples }] of Object.entries(document.components.messages))
    if (!elsewhere.includes(name)) {
      const alike = came.filter(([, said]) => namesOf(said, [name]).length === 1).map(([, said]) => said);
      for (const example of examples) expect(alike, name).toContainEqual(example);
    }
});
