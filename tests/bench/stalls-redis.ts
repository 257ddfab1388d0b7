/**
 * Fills a Redis for the rows about long work, by scripts, with what the file of `stalls.ts` has. `engine/redis/scripts.ts` describes the data.
 */
import type { AskRedis, ServiceStart } from "./service.ts";

/** Things per script. */
const FILLED_AT_ONCE = 20_000;

type Fill = NonNullable<ServiceStart["fillRedis"]>;

/** Runs a script for the numbers from 1 up to `count`, a part at a time: from ARGV[1] up to ARGV[2]; ARGV[3] is now. */
async function inParts(ask: AskRedis, count: number, text: string): Promise<void> {
  for (let first = 1; first <= count; first += FILLED_AT_ONCE) {
    const last = Math.min(count, first + FILLED_AT_ONCE - 1);
    const answer = await ask("EVAL", text, "0", String(first), String(last), String(Date.now()));
    if (answer.startsWith("-")) throw new Error(answer);
  }
}

const COUNTERS = "'epoch', 'epochepoch', 'head', 1, 'floor', 0, 'receiptsFloor', 0";

/** A channel, its devices, and one event that all of them were sent. */
export const redisEvent =
  (devices: number): Fill =>
  async (ask) => {
    await inParts(
      ask,
      devices,
      `for i = ARGV[1], ARGV[2] do
         local device = string.format('device-%07d', i)
         redis.call('HSET', 'pere:{c}:devices', device, '0 ' .. ARGV[3] .. ' 0 0 0 -1')
         redis.call('ZADD', 'pere:{c}:names', 0, device)
       end
       redis.call('HSET', 'pere:{c}:counters', ${COUNTERS}, 'receiptsHead', 0, 'audience', ARGV[2])
       redis.call('HSET', 'pere:{c}:tallies', '1:n', ARGV[2], '1:at', ARGV[3])
       redis.call('ZADD', 'pere:channels', 0, 'c')`,
    );
    await ask("XADD", "pere:{c}:events", "1-0", "v", `${Date.now()}      {"n":1}`);
  };

/** A receipts log, all on one event, with the mark that the generator counts. */
export const redisReceipts =
  (receipts: number): Fill =>
  async (ask) => {
    await redisEvent(1)(ask);
    await inParts(
      ask,
      receipts,
      `for i = ARGV[1], ARGV[2] do
         redis.call('XADD', 'pere:{c}:receipts', string.format('%.0f-0', i), 'v', '1 device-0000001 1 ' .. ARGV[3] .. '  0  "!"', 'k', '1:device-0000001')
       end
       redis.call('HSET', 'pere:{c}:counters', 'receiptsHead', ARGV[2])`,
    );
  };

export const redisChannels =
  (channels: number): Fill =>
  (ask) =>
    inParts(
      ask,
      channels,
      `for i = ARGV[1], ARGV[2] do
         local name = string.format('c-%07d', i)
         redis.call('HSET', 'pere:{' .. name .. '}:counters', 'epoch', string.format('epoch%07d', i), 'head', 0, 'floor', 0, 'receiptsHead', 0,
           'receiptsFloor', 0, 'audience', 1)
         redis.call('ZADD', 'pere:channels', 0, name)
       end`,
    );
