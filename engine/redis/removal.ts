/**
 * Deletes a channel that nobody needs any more: no devices, no hooks, no scheduled pushes to come, and no events that have not expired. `scripts.ts`
 * describes the data.
 *
 * Deleting a key costs nothing, but a channel may keep very many events whose expiry must be looked at. So a script looks at some of them; the one that
 * has looked at the last of them deletes the channel.
 */

/**
 * A new epoch, now, an epoch and the event in it up to which all have expired; the keys of scheduled pushes, the hooks → 0: there is no such channel;
 * 1: it is deleted; 2, whether it has events, how many devices, hooks, scheduled pushes to come; 3, epoch, up to which event all have expired: call again
 */
export const REMOVE = `
    local channel, now = look(), tonumber(ARGV[2])
    if not channel then return { 0 } end
    local hooks, schedules = redis.call('SCARD', KEYS[#KEYS]), tonumber(redis.call('HGET', KEYS[#KEYS - 3], 'count') or 0)
    local kept = channel.head - channel.floor
    -- Every event that expires is listed there.
    local hasEvents = redis.call('ZCOUNT', filteredEvents, text(channel.floor + 1), text(channel.head)) < kept
    local upTo = math.max(channel.floor, ARGV[3] == channel.epoch and tonumber(ARGV[4]) or 0)
    if not hasEvents then
      local found, order = filtered(upTo + 1, channel.head)
      for _, seq in ipairs(order) do
        if not found[seq].control and (found[seq].expires == 0 or found[seq].expires > now) then hasEvents = true end
      end
      upTo = #order == CHUNK and order[CHUNK] or channel.head
    end
    if hasEvents or channel.audience > 0 or hooks > 0 or schedules > 0 then
      return { 2, hasEvents and 1 or 0, channel.audience, hooks, schedules }
    end
    if upTo < channel.head then return { 3, channel.epoch, upTo } end
    local isUnborn = channel.head == 0 and channel.receiptsHead == 0
    for part = 1, #KEYS - 1 do redis.call('UNLINK', KEYS[part]) end
    -- What was stored has ids of the old epoch. Nobody has seen an id of a channel that never stored anything.
    reserve(isUnborn and channel.epoch or ARGV[1])
    return { 1 }`;
