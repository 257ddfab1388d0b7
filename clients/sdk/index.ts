/**
 * The SDK: what a program needs to be a device or a publisher of PERE, in one file with no dependency, for browsers, Bun, Node ≥ 20 and Deno.
 *
 *   listen({ url, channels, device, token, onEvent })    a device: works on each event, and gives its receipts
 *   publish(url, channel, data, options)                 pushes an event; repeated until it was answered, stored once
 *   receipts({ url, channel })                           what the devices say, as it comes
 *
 * A network may do anything to it: cut, stall, hold answers back, answer in the service's stead. Three habits carry all of it. A feed is followed from
 * the last position that it told, by whatever gets through: SSE, else a WebSocket, else long-polls. An event is known by its id, and
 * worked on once, however often it comes. A receipt stays in the outbox until the service has answered for it.
 *
 * A named device that starts asks for no position: the service then gives it what it still owes, and that is the truth. What is
 * remembered on its side is only which of those events it has finished, until the service has that too.
 *
 * It never takes an answer for the service's that is not one (a hotel's page, a proxy's error): each field is checked before it is believed. It never
 * runs `onEvent` for a finished id, never drops a receipt on its own account, says `failed` only where `onEvent` threw, and asks nobody but `url`.
 *
 * The oldest browsers that it runs in are Safari 15.4, Chrome 94 and Firefox 100. What they lack is not used, or is done without.
 */

export { PereError, type PushedEvent, type Word, type Receipt, type Gap, type Tally, type Transport } from "./model.ts";
export { TIMING, type Timing } from "./timing.ts";
export type { Token, SocketLike, ConnectionOptions } from "./service-client.ts";
export { browserStorage, fileStorage, type DeviceStorage } from "./storage.ts";
export type { Status, Observable } from "./status.ts";
export { listen, type Context, type ListenOptions, type Listener } from "./listen.ts";
export { publish, publishMany, type PublishOptions, type Pushed, type PushedMany } from "./publish.ts";
export {
  receipts,
  type DeviceReceipt,
  type Complete,
  type ReceiptMessage,
  type ReceiptsOptions,
  type Receipts,
} from "./receipts.ts";
