/**
 * `POST /feedback/:channel`: receipts from devices, one or many.
 */
import type { Server } from "bun";
import { DETAIL_BYTES_MAX, PereError, type ReceiptDraft, RECEIPTS_MAX } from "../model.ts";
import {
  otherDevice,
  readChannel,
  readDevice,
  readOldStatus,
  readPosition,
  readReceipt,
  readReceiptsJson,
  readText,
} from "../parsing.ts";
import type { Params, RouteContext } from "./context.ts";
import { problem } from "./problem.ts";
import { contentType, deviceOf, queryOf } from "./request.ts";
import { json } from "./response.ts";
import type { SocketData } from "./transports.ts";

type ReceiptItem = { channel: string; draft: ReceiptDraft } | { event: string | null; reason: string };

/** A body of one receipt or an array of them. @throws PereError */
export function receiptItems(
  body: unknown,
  device: string | null,
  channelOf: (draft: ReceiptDraft) => string,
): ReceiptItem[] {
  const values = Array.isArray(body) ? (body as unknown[]) : [body];
  if (values.length > RECEIPTS_MAX) throw new PereError("tooLarge", `at most ${RECEIPTS_MAX} receipts at once`);
  return values.map((value) => {
    const draft = readReceipt(value, device);
    if (typeof draft !== "string") return { channel: channelOf(draft), draft };
    const event = (value as { event?: unknown } | null)?.event;
    return { event: typeof event === "string" ? event : null, reason: draft };
  });
}

/** The form that the clients of 2014 send, with `id`, `device` and `status` in the places where they put them. @throws PereError */
function oldReceipt(
  text: string,
  request: Request,
  device: string | null,
  owner: string | null,
  channel: string,
): ReceiptItem {
  const form = new URLSearchParams(text);
  const event = form.get("id") ?? form.get("event") ?? request.headers.get("last-event-id") ?? "";
  const name = form.get("device") ?? device;
  if (name === null) return { event, reason: "device: must be given, as a field, in the query or in a header" };
  const named = readDevice(name);
  if (owner !== null && named !== owner) return { event, reason: otherDevice(named, owner) };
  const said = readOldStatus(form.get("status") ?? "");
  const draft = {
    event: readPosition(event, "id"),
    device: named,
    ...said,
    deviceAt: null,
    after: null,
    round: null,
    retry: true,
  };
  return { channel, draft };
}

export async function feedback(
  { engine, admission, bodyOf, right }: RouteContext,
  { channel: channelText }: Params,
  request: Request,
  server: Server<SocketData>,
): Promise<Response> {
  const channel = readChannel(channelText);
  const grant = await admission.authorize(request, right, [channel]);
  const device = deviceOf(grant, request, queryOf(request, ["device"]));
  const take = admission.counter("receipt", grant, request, server);
  const form = contentType(request);
  if (form !== "application/json" && form !== "application/x-www-form-urlencoded")
    throw new PereError(
      "wrongType",
      "feedback takes application/json, or the form of the first PERE clients (application/x-www-form-urlencoded)",
    );
  const text = readText(await bodyOf(request, RECEIPTS_MAX * (DETAIL_BYTES_MAX + 1024)));
  const items =
    form === "application/json"
      ? receiptItems(readReceiptsJson(text), device, () => channel)
      : [oldReceipt(text, request, device, grant.subject, channel)];
  await take(items.length);
  const result = await engine.feedback(items);
  if (items.length === 0 || result.rejected.length < items.length) return json(result);
  const why = result.rejected.length === 1 ? result.rejected[0]!.reason : "every receipt was rejected";
  return problem(new PereError("refused", why), result);
}
