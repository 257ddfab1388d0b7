/**
 * The routes for reading a channel's events, the receipts of an event, and what needs attention.
 */
import { demand } from "../auth/rights.ts";
import { id, iso, PereError, type Row, type State, STATES, tallyCounts } from "../model.ts";
import { readNote, readPosition } from "../parsing.ts";
import type { Page } from "../store.ts";
import { NO_TAGS, type Tags, tagsJson, tagsText } from "../tags.ts";
import { channelOf, plainChannelOf } from "./channel.ts";
import type { Params, RouteContext } from "./context.ts";
import { accepts, choiceOf, PAGE_OPTIONS, pageOf, queryOf } from "./request.ts";
import { json, jsonText, PLAIN } from "./response.ts";

export async function listEvents(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await channelOf(context, params, request);
  const query = queryOf(request, ["order", ...PAGE_OPTIONS]);
  const { after, limit } = pageOf(query);
  const isNewestFirst = choiceOf(query, "order", ["asc", "desc"]) === "desc";
  const position = after ? readPosition(after, "after") : null;
  const { texts, next } = isNewestFirst
    ? await context.engine.newestEvents(channel, position, limit)
    : await context.engine.events(channel, position, limit);
  return jsonText(`{"events":[${texts.join(",")}],"next":${JSON.stringify(next)}}`);
}

export async function readEvent(context: RouteContext, params: Params, request: Request): Promise<Response> {
  return jsonText(await context.engine.event(await plainChannelOf(context, params, request), params.id));
}

/** Withdraws an event; the answer is its state. */
export async function withdrawEvent(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await channelOf(context, params, request);
  const note = readNote(queryOf(request, ["note"]).get("note") ?? "");
  return jsonText(await context.engine.withdraw(channel, params.id, note));
}

/** A row with the tags that its device has now. */
type TaggedRow = Row & { readonly tags: Tags };

const rowJson = ({ device, status, detail, at, deviceAt, late, round, attempt, due, tags }: TaggedRow): string =>
  `{"device":"${device}","status":"${status}","detail":${detail ?? "null"},"at":${at === null ? "null" : `"${iso(at)}"`},` +
  `"deviceAt":${deviceAt === null ? "null" : `"${iso(deviceAt)}"`},"late":${late},"round":${round},"attempt":${attempt},` +
  `${due === undefined ? "" : `"due":"${iso(due)}",`}"tags":${JSON.stringify(tagsJson(tags))}}`;

/** A line of CSV (RFC 4180). Only `detail` and several tags can need quotes. */
const rowCsv = ({ device, status, detail, at, deviceAt, late, round, attempt, due, tags }: TaggedRow): string =>
  `${device},${status},${detail === null ? "" : `"${detail.replaceAll('"', '""')}"`},` +
  `${at === null ? "" : iso(at)},${deviceAt === null ? "" : iso(deviceAt)},${late},${round},${attempt},` +
  `${due === undefined ? "" : iso(due)},` +
  (tags.size > 1 ? `"${tagsText(tags)}"` : tagsText(tags));

/** The statuses in `status`, comma separated; null: not given. @throws PereError malformed */
function statusesOf(query: ReadonlyMap<string, string>): State[] | null {
  const words = query.get("status")?.split(",");
  if (words === undefined) return null;
  if (words.every((word) => (STATES as readonly string[]).includes(word))) return [...new Set(words)] as State[];
  const message = `must be one of ${STATES.join(", ")}, or several of them, comma separated`;
  throw new PereError("malformed", `status: ${message}`, [{ path: "status", message }]);
}

/** Rows that an export reads at once. With details of maximum length that is 1 MiB, the cost of a client that stops reading. */
const EXPORT_ROWS = 250;

export async function receiptRows(context: RouteContext, params: Params, request: Request): Promise<Response> {
  const channel = await channelOf(context, params, request);
  const { id: event } = params;
  const query = queryOf(request, ["status", ...PAGE_OPTIONS]);
  const { after, limit } = pageOf(query);
  const statuses = statusesOf(query);
  const read = async (from: string, size: number): Promise<Page<TaggedRow, string>> => {
    const { items, next } = await context.engine.rows(channel, event, statuses, from, size);
    const names = items.map(({ device }) => device);
    const tags = await context.engine.tags(channel, names);
    return { items: items.map((row) => ({ ...row, tags: tags.get(row.device) ?? NO_TAGS })), next };
  };
  const asCsv = accepts(request, "text/csv");
  if (!asCsv && !accepts(request, "application/x-ndjson")) {
    const { items, next } = await read(after, limit);
    return jsonText(`{"receipts":[${items.map(rowJson).join(",")}],"next":${JSON.stringify(next)}}`);
  }
  // An export: all rows unless a limit was given, page by page, as fast as the client reads.
  let left = query.has("limit") ? limit : Number.POSITIVE_INFINITY;
  let page = await read(after, Math.min(left, EXPORT_ROWS));
  async function* lines() {
    if (asCsv) yield "device,status,detail,at,deviceAt,late,round,attempt,due,tags\r\n";
    for (;;) {
      yield page.items.map((row) => (asCsv ? `${rowCsv(row)}\r\n` : `${rowJson(row)}\n`)).join("");
      left -= page.items.length;
      if (page.next === null || left <= 0) return;
      page = await read(page.next, Math.min(left, EXPORT_ROWS));
    }
  }
  const type = asCsv ? "text/csv; charset=utf-8; header=present" : "application/x-ndjson";
  return new Response(lines() as unknown as BodyInit, {
    headers: { "Content-Type": type, ...PLAIN },
  });
}

/** What needs attention in all channels that the caller may push to. */
export async function readAttention(
  { engine, admission, right }: RouteContext,
  _params: Params,
  request: Request,
): Promise<Response> {
  const grant = await admission.authorize(request, right, []);
  demand(grant, right, null);
  const { limit } = pageOf(queryOf(request, ["limit"]));
  const { at, totals, devices, events, hooks, channels } = await engine.attention(grant.scope(right), limit);
  return json({
    at: iso(at),
    totals,
    devices: devices.map(({ channel, device, failed, missing, overdue, since, connected, seenAt }) => ({
      ...{ channel, device, failed, missing, overdue, since: iso(since), connected },
      seenAt: seenAt === null ? null : iso(seenAt),
    })),
    events: events.map(({ channel, epoch, seq, at, type, deadline, tally }) => ({
      ...{ id: id(epoch, seq), channel, at: iso(at), type },
      deadline: deadline === null ? null : iso(deadline),
      receipts: tallyCounts(tally),
    })),
    hooks,
    channels: channels.map((channel) => ({ ...channel, since: iso(channel.since) })),
  });
}
