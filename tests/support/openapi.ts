/**
 * A service beside its OpenAPI document: requests as the document describes them, and answers held to what it declares.
 */
import { afterAll, beforeAll, spyOn } from "bun:test";
import { join } from "node:path";
import Ajv2020 from "ajv/dist/2020";
import { Elysia } from "elysia";
import { readRanges } from "../../engine/addresses.ts";
import { issueToken } from "../../engine/auth/issue.ts";
import type { Service } from "../../index.ts";
import { SAMPLE_EPOCH, SAMPLE_TIME_MS } from "../../web/openapi-schemas.ts";
import { type Document, operationsOf, type Place, type Reply, strictCopy } from "./described.ts";
import { ask, SECRET, start, startWith, temporary } from "./harness.ts";

export let pere: Service;

/** The same with a secret, and tokens for it: one with no right at all, and one that has had its time. */
export let guarded: Service;

export let weak: string;

export let expired: string;

export let document: Document;

export let routes: { method: string; path: string; hidden: boolean }[];

let ajv: Ajv2020;

/** Every operation by its id, with where it is. */
export let operations: Map<string, Place>;

/** Starts the services before the tests of a file and reads the document; stops them behind the tests. */
export function describedServices(): void {
  beforeAll(begin);
  afterAll(() => Promise.all([pere.stop(), guarded.stop()]));
}

async function begin(): Promise<void> {
  epoch = SAMPLE_EPOCH;
  const using = spyOn(Elysia.prototype, "use");
  // The example's hook leads to nobody.
  const hooks = { hooksAllowed: readRanges("127.0.0.0/8"), hookCall: { resolve: async () => ["127.0.0.1"] } };
  pere = await start({ now: () => SAMPLE_TIME_MS, random: () => 0.5, ...hooks }, join(temporary(), "pere.db"));
  guarded = await startWith({}, { now: () => SAMPLE_TIME_MS });
  const claims = { sub: "till-7", push: [], feed: [], days: 1 };
  weak = await issueToken({ secret: SECRET, now: () => SAMPLE_TIME_MS }, claims);
  expired = await issueToken({ secret: SECRET, now: () => SAMPLE_TIME_MS - 2 * 86_400_000 }, claims);
  const app = (using.mock.contexts as unknown as Elysia[]).find(({ server }) => server)!;
  using.mockRestore();
  routes = app.routes.map(({ method, path, hooks }) => ({
    method,
    path,
    hidden: (hooks as { detail?: { hide?: boolean } }).detail?.hide === true,
  }));
  document = (await ask(`${pere.url}/swagger/json`)).body as Document;
  operations = operationsOf(document);
  ajv = new Ajv2020({ strict: false, allErrors: true, validateFormats: false });
  ajv.addSchema(strictCopy(document) as object, "document");
}

/** What is wrong with a value by a schema of the document, in words; "" when nothing is. */
export function faults(pointer: string, value: unknown): string {
  const validate = ajv.getSchema(`document#${pointer}`);
  if (!validate) throw new Error(`there is no schema at ${pointer}`);
  return validate(value) ? "" : `${JSON.stringify(value)}: ${ajv.errorsText(validate.errors)}`;
}

export const shapeOf = (name: string, value: unknown): string => faults(`/components/schemas/${name}`, value);

export const escape = (part: string): string => encodeURIComponent(part.replaceAll("~", "~0").replaceAll("/", "~1"));

/** A declared answer, and where it stands in the document. */
export function replyOf(operationId: string, status: number): { reply: Reply; pointer: string } | null {
  const { path, method, operation } = operations.get(operationId)!;
  const reply = operation.responses[status];
  if (!reply) return null;
  if (!reply.$ref) return { reply, pointer: `/paths/${escape(path)}/${method.toLowerCase()}/responses/${status}` };
  const name = reply.$ref.slice("#/components/responses/".length);
  return { reply: document.components.responses[name]!, pointer: `/components/responses/${name}` };
}

/** The epoch of the story's channel on this service, once it is known. */
export let epoch = SAMPLE_EPOCH;

/** The story goes on with the epoch of this answer to its first push. */
export function tellEpoch(pushed: string): void {
  epoch = /"id":"([0-9a-z]+)-/.exec(pushed)![1]!;
}

export const JSON_TYPE = "application/json";
