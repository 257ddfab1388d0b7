/**
 * The SDK: what a program needs to be a device or a publisher of PERE. It has no dependencies and runs in browsers, Bun, Node 20 or newer and Deno.
 *
 *   listen({ url, channels, device, token, onEvent })    a device: handles each event and sends its receipts
 *   publish(url, channel, data, options)                 pushes an event; repeated until the service answers, stored once
 *   schedule(url, channel, data, { at | every })         pushes it later; also readScheduled, cancelScheduled
 *   withdraw(url, channel, id, { note })                 takes an event back
 *   receipts({ url, channel })                           what the devices answer, as it arrives
 *   readAttention({ url })                               who did not do it, in all channels, worst first
 *   readDevices({ url, channel })                        lists, page by page; also readChannels, readHistory, readRows, readDevice
 *
 * To read it, start with model.ts and service-client.ts (requests). feed.ts follows a feed: event-stream.ts, websocket.ts, watchdog.ts and messages.ts are
 * its parts. listen.ts is a device: event-work.ts, outbox.ts, event-queue.ts, device-state.ts, status.ts and tabs.ts are its parts. publish.ts, receipts.ts,
 * reading.ts and attention.ts are the publisher; retry.ts repeats its requests.
 *
 * The network may cut, stall or delay any connection, and a proxy or a login page may answer in place of the service. A feed is therefore followed from its
 * last position over whatever gets through: SSE, then a WebSocket, then long-polls. An event is known by its id and handled once, however often it
 * arrives. A receipt stays in the outbox until the service has answered it.
 *
 * Each field of an answer is checked before it is believed. The SDK never runs `onEvent` for an event that is finished or withdrawn, never drops a receipt that the
 * service has not answered, sends `failed` only when `onEvent` threw, and contacts no address but `url`.
 *
 * The oldest supported browsers are Safari 15.4, Chrome 94 and Firefox 100. Features that they lack are not used, or are optional.
 */

export {
  Deferred,
  Failed,
  PereError,
  type FailedOptions,
  type Gap,
  type LateReason,
  type PushedEvent,
  type Receipt,
  type Tally,
  type Transport,
  type Withdrawal,
  type WithdrawalReason,
  type Word,
} from "./model.ts";
export { TIMING, type Timing } from "./timing.ts";
export type { Token, SocketLike, ConnectionOptions } from "./service-client.ts";
export { browserStorage, fileStorage, type DeviceStorage } from "./storage.ts";
export type { Status, Observable } from "./status.ts";
export type { Context } from "./event-work.ts";
export { listen, type ListenOptions, type Listener } from "./listen.ts";
export {
  publish,
  publishMany,
  schedule,
  type PublishOptions,
  type Pushed,
  type PushedMany,
  type Scheduled,
  type ScheduleOptions,
} from "./publish.ts";
export { readAttention, type Attention, type AttentionOptions, type Troubles } from "./attention.ts";
export {
  receipts,
  type DeviceReceipt,
  type Complete,
  type ReceiptMessage,
  type ReceiptsOptions,
  type Receipts,
  type Settled,
  type Withdrawn,
} from "./receipts.ts";
export {
  cancelScheduled,
  deleteChannel,
  readChannels,
  readDevice,
  readDevices,
  readHistory,
  readRows,
  readScheduled,
  testHook,
  withdraw,
  type CancelOptions,
  type ChannelOptions,
  type ChannelsOptions,
  type ChannelState,
  type DeviceOptions,
  type DevicesOptions,
  type DeviceState,
  type EventState,
  type HistoryRow,
  type HookOptions,
  type HookTested,
  type ReadOptions,
  type ReceiptRow,
  type RowsOptions,
  type ScheduledPush,
  type State,
  type WithdrawOptions,
} from "./reading.ts";
