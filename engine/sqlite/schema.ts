/**
 * The tables of a PERE file.
 *
 * Small rows that change often (tallies) are kept apart from large ones that never change (events). `latest` has a device's status on an event and
 * points to the receipt that set it. `devices` has one row per enrolment, so a device that left and returned has two. The audience of an event
 * follows from `joined` and `left`; names are stored only for events with `to` or `where`.
 *
 * A push to all devices writes a single row, that of the event: with many channels each further row would be another page to sync. So an event gets a
 * row in `tallies` with its first receipt. Before that, its tally is the number of addressed devices, which `audiences` stores for runs of events. A
 * channel's `head` and `receiptsHead` are lower bounds; the logs may be further.
 *
 * A device is retired in two steps. First, `devices` and `leaving` exclude it from the audience of every event that it sent no final receipt for;
 * this is visible at once. Then it is removed from tallies and names in slices; after a restart this continues.
 *
 * What a device lost to retention is not noted for each device, because most may be silent: `lost` of the channel says it for those that owe something
 * up to that event, `lost` of a device for the others. `enrolments.ts` puts the two together.
 *
 * `deadlines` has the events whose deadline is ahead or being processed; `after` is the last device that was processed. An event that is complete has
 * no row there: the receipts log says that it is settled when its row goes.
 *
 * `controls` has the control entries of the events log, one per withdrawn event. What a withdrawal does to devices follows from it: it changes the tally
 * of its event once, and no row of a device. `nth` counts a channel's control entries, so that those between two positions need not be counted.
 * `rounds` has the devices that deferred an event; `due` is when the next round begins, and stays until a word of that round.
 *
 * `journal` has events that are not in this table of events yet. On the connection of a store, `events` is a view that shows both, and the table is
 * `main.events`: `recent-events.ts`.
 *
 * There is deliberately no index of receipts by device: devices answer the same event at about the same time, so such an index would dirty one page
 * per receipt where `latest` dirties one for dozens. What a device owes is found by looking up the events after `settled` in `latest`; `settled`
 * follows the device every few seconds.
 */
import type { Schema } from "./file.ts";
import { isFinal, stateCode, STATES as STATE_NAMES } from "../model.ts";

/** The first version. */
const TABLES = `
CREATE TABLE channels (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, epoch TEXT NOT NULL,
  head INTEGER NOT NULL, floor INTEGER NOT NULL, swept INTEGER NOT NULL,
  receiptsHead INTEGER NOT NULL, receiptsFloor INTEGER NOT NULL, audience INTEGER NOT NULL
) STRICT;
CREATE TABLE events (
  channel INTEGER NOT NULL, seq INTEGER NOT NULL, at INTEGER NOT NULL, expires INTEGER, targeted INTEGER NOT NULL, type TEXT, data TEXT NOT NULL,
  PRIMARY KEY (channel, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE tallies (
  channel INTEGER NOT NULL, event INTEGER NOT NULL, addressed INTEGER NOT NULL,
  received INTEGER NOT NULL DEFAULT 0, working INTEGER NOT NULL DEFAULT 0, missing INTEGER NOT NULL DEFAULT 0,
  done INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (channel, event)
) STRICT, WITHOUT ROWID;
CREATE TABLE targets (
  channel INTEGER NOT NULL, event INTEGER NOT NULL, device TEXT NOT NULL,
  PRIMARY KEY (channel, event, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX targetsOfDevice ON targets (channel, device, event);
CREATE TABLE devices (
  channel INTEGER NOT NULL, device TEXT NOT NULL, joined INTEGER NOT NULL, "left" INTEGER, enrolledAt INTEGER NOT NULL, seenAt INTEGER,
  settled INTEGER NOT NULL, lost INTEGER NOT NULL DEFAULT 0, told INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (channel, device, joined)
) STRICT, WITHOUT ROWID;
CREATE INDEX retired ON devices (channel, "left") WHERE "left" IS NOT NULL;
CREATE TABLE receipts (
  channel INTEGER NOT NULL, seq INTEGER NOT NULL, event INTEGER NOT NULL, device TEXT NOT NULL, status INTEGER NOT NULL,
  at INTEGER NOT NULL, deviceAt INTEGER, late INTEGER NOT NULL, detail TEXT,
  PRIMARY KEY (channel, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE latest (
  channel INTEGER NOT NULL, event INTEGER NOT NULL, device TEXT NOT NULL, status INTEGER NOT NULL, receipt INTEGER NOT NULL,
  PRIMARY KEY (channel, event, device)
) STRICT, WITHOUT ROWID;
CREATE TABLE keys (
  channel INTEGER NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,
  at INTEGER NOT NULL, addressed INTEGER NOT NULL, type TEXT, expires INTEGER NOT NULL,
  PRIMARY KEY (channel, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX keysByAge ON keys (expires);
`;

/** Deadlines, reminders and hooks; and which receipt completed its event. */
const DEADLINES = `
ALTER TABLE events ADD COLUMN deadline INTEGER;
ALTER TABLE events ADD COLUMN remind INTEGER;
CREATE INDEX reminded ON events (channel, seq) WHERE remind IS NOT NULL;
ALTER TABLE receipts ADD COLUMN done INTEGER;
ALTER TABLE receipts ADD COLUMN failed INTEGER;
CREATE TABLE deadlines (
  at INTEGER NOT NULL, channel INTEGER NOT NULL, event INTEGER NOT NULL, after TEXT NOT NULL,
  PRIMARY KEY (at, channel, event)
) STRICT, WITHOUT ROWID;
CREATE TABLE hooks (
  channel INTEGER NOT NULL, name TEXT NOT NULL, url TEXT NOT NULL, secret TEXT NOT NULL, kinds TEXT NOT NULL, createdAt INTEGER NOT NULL,
  cursor INTEGER NOT NULL, disabled TEXT, revision INTEGER NOT NULL, fence INTEGER NOT NULL,
  PRIMARY KEY (channel, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE deliveries (
  channel INTEGER NOT NULL, hook TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, createdAt INTEGER NOT NULL,
  attempts INTEGER NOT NULL, nextAt INTEGER, status INTEGER, error TEXT,
  PRIMARY KEY (channel, hook, id)
) STRICT, WITHOUT ROWID;
`;

/** How many devices were enrolled when an event for all devices was pushed. Holds for the events after it, up to the next row. */
const AUDIENCES = `
CREATE TABLE audiences (
  channel INTEGER NOT NULL, event INTEGER NOT NULL, addressed INTEGER NOT NULL,
  PRIMARY KEY (channel, event)
) STRICT, WITHOUT ROWID;
`;

/** Previous secrets of a hook: `FormerSecret`. */
const FORMER_SECRETS = `ALTER TABLE hooks ADD COLUMN former TEXT NOT NULL DEFAULT '';`;

/** The retired device of a channel that is still to be removed from the events after `released`, up to `upTo`; at most one per channel. */
const LEAVING = `
CREATE TABLE leaving (
  channel INTEGER PRIMARY KEY, device TEXT NOT NULL, joined INTEGER NOT NULL, upTo INTEGER NOT NULL, released INTEGER NOT NULL, at INTEGER NOT NULL
) STRICT;
`;

/** Channels that only feeds have created, and the last sign of life of their devices; null: the channel is in use. */
const UNUSED = `
ALTER TABLE channels ADD COLUMN touched INTEGER;
CREATE INDEX unused ON channels (touched) WHERE touched IS NOT NULL;
`;

/**
 * The newest event to all devices that a device which answered none of those that retention dropped has lost; and the devices that are enrolled now.
 * Earlier versions noted what a device lost before they dropped it, so of what they dropped nothing is left to note.
 */
const LOSSES = `
ALTER TABLE channels ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;
CREATE INDEX enrolled ON devices (channel, device) WHERE "left" IS NULL;
UPDATE devices SET settled = max(settled, (SELECT floor FROM channels WHERE id = channel))
  WHERE "left" IS NULL AND channel IN (SELECT id FROM channels WHERE floor > swept);
`;

/** When retention may next have something to do in a channel, milliseconds since 1970; null: not before another event. Unknown in older files: at once. */
const TRIMS = `
ALTER TABLE channels ADD COLUMN trimAt INTEGER DEFAULT 0;
CREATE INDEX trims ON channels (trimAt) WHERE trimAt IS NOT NULL;
`;

/** Pushes for later: `next` is when one is due, null when it is done; `doneAt` says since when. An event says which one it was pushed for. */
const SCHEDULES = `
CREATE TABLE schedules (
  channel INTEGER NOT NULL, id TEXT NOT NULL, options TEXT NOT NULL, data TEXT NOT NULL, every TEXT, tz TEXT, next INTEGER,
  last TEXT, error TEXT, doneAt INTEGER,
  PRIMARY KEY (channel, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX dueSchedules ON schedules (next) WHERE next IS NOT NULL;
CREATE INDEX doneSchedules ON schedules (doneAt) WHERE doneAt IS NOT NULL;
ALTER TABLE events ADD COLUMN scheduled TEXT;
`;

/** A hook's last successful call and a delivery's attempts, as JSON. */
const TRIES = `
ALTER TABLE hooks ADD COLUMN lastDelivered TEXT;
ALTER TABLE deliveries ADD COLUMN tries TEXT NOT NULL DEFAULT '[]';
`;

/** Events in the order of their arrival, about fourteen per row, as a JSON array; see `recent-events.ts`. */
const JOURNAL = `
CREATE TABLE journal (row INTEGER PRIMARY KEY, number INTEGER NOT NULL, merged INTEGER NOT NULL, events TEXT NOT NULL) STRICT;
`;

/**
 * Who did not do it: `attention.ts`. Of an older file, what devices failed or are missing on is counted here, except by devices that were retired
 * since; what is overdue is found by the cursors.
 */
const ATTENTION = `
CREATE TABLE attention (
  channel INTEGER PRIMARY KEY, aged INTEGER NOT NULL, scan TEXT, numbers INTEGER NOT NULL DEFAULT 0, dropped INTEGER NOT NULL DEFAULT 0,
  devices INTEGER NOT NULL DEFAULT 0, silent INTEGER NOT NULL DEFAULT 0, idle INTEGER NOT NULL DEFAULT 0,
  failed INTEGER NOT NULL DEFAULT 0, missing INTEGER NOT NULL DEFAULT 0, overdue INTEGER NOT NULL DEFAULT 0, revision INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX troubledChannels ON attention (channel) WHERE failed + missing + overdue > 0;
CREATE TABLE troubledEvents (
  channel INTEGER NOT NULL, event INTEGER NOT NULL, at INTEGER NOT NULL,
  failed INTEGER NOT NULL, missing INTEGER NOT NULL, overdue INTEGER NOT NULL, number INTEGER,
  PRIMARY KEY (channel, event)
) STRICT, WITHOUT ROWID;
CREATE INDEX worstEvents ON troubledEvents (channel, failed + missing + overdue DESC, event);
CREATE INDEX numberedEvents ON troubledEvents (channel, number) WHERE number IS NOT NULL;
CREATE TABLE troubledDevices (
  channel INTEGER NOT NULL, device TEXT NOT NULL, failed INTEGER NOT NULL, missing INTEGER NOT NULL, overdue INTEGER NOT NULL,
  silent INTEGER, part INTEGER NOT NULL, weight INTEGER NOT NULL, oldest INTEGER, since INTEGER NOT NULL,
  PRIMARY KEY (channel, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX worstDevices ON troubledDevices (channel, part, weight DESC, since, device);
CREATE INDEX oldestTrouble ON troubledDevices (channel, oldest) WHERE oldest IS NOT NULL;
CREATE TABLE troubles (
  channel INTEGER NOT NULL, device TEXT NOT NULL, event INTEGER NOT NULL, kind TEXT NOT NULL,
  PRIMARY KEY (channel, device, event)
) STRICT, WITHOUT ROWID;
CREATE TABLE silences (
  channel INTEGER NOT NULL, device TEXT NOT NULL, after INTEGER NOT NULL, upTo INTEGER NOT NULL,
  PRIMARY KEY (channel, device, after)
) STRICT, WITHOUT ROWID;
CREATE INDEX givenUp ON deliveries (channel, hook) WHERE nextAt IS NULL;
CREATE INDEX disabledHooks ON hooks (channel, name) WHERE disabled IS NOT NULL;
INSERT INTO troubles SELECT l.channel, l.device, l.event, iif(l.status = 3, 'missing', 'failed') FROM latest l JOIN channels c ON c.id = l.channel
  WHERE l.status IN (3, 5) AND l.event > c.floor AND
  NOT EXISTS (SELECT 1 FROM devices d WHERE d.channel = l.channel AND d.device = l.device AND d."left" >= l.event);
INSERT INTO troubledEvents SELECT t.channel, t.event, e.at, sum(t.kind = 'failed'), sum(t.kind = 'missing'), 0, NULL FROM troubles t
  JOIN events e ON e.channel = t.channel AND e.seq = t.event GROUP BY t.channel, t.event;
INSERT INTO troubledDevices SELECT channel, device, failed, missing, 0, NULL, 0, failed + missing, oldest,
  (SELECT at FROM events e WHERE e.channel = t.channel AND e.seq = oldest) FROM
  (SELECT channel, device, sum(kind = 'failed') AS failed, sum(kind = 'missing') AS missing, min(event) AS oldest FROM troubles GROUP BY channel, device) t;
INSERT INTO attention (channel, aged, devices, failed, missing) SELECT id, 0,
  (SELECT count(*) FROM troubledDevices WHERE channel = id),
  coalesce((SELECT sum(failed) FROM troubledEvents WHERE channel = id), 0), coalesce((SELECT sum(missing) FROM troubledEvents WHERE channel = id), 0)
  FROM channels WHERE id IN (SELECT channel FROM troubledEvents);
`;

/**
 * Deferrals, withdrawals and keys. `note` of a receipt: `notes.ts`. `round` and `attempt` are null where they are what most are: 1, and 1 for `failed`, else 0.
 * `late` is 0, or the code of a `LateReason`.
 */
const STATES = `
ALTER TABLE tallies ADD COLUMN deferred INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tallies ADD COLUMN withdrawn INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tallies ADD COLUMN isOver INTEGER NOT NULL DEFAULT 0;
ALTER TABLE receipts ADD COLUMN round INTEGER;
ALTER TABLE receipts ADD COLUMN attempt INTEGER;
ALTER TABLE receipts ADD COLUMN note TEXT;
CREATE TABLE controls (
  channel INTEGER NOT NULL, seq INTEGER NOT NULL, event INTEGER NOT NULL, at INTEGER NOT NULL, reason TEXT NOT NULL, "by" INTEGER, note TEXT,
  targeted INTEGER NOT NULL, expires INTEGER, answered INTEGER NOT NULL, nth INTEGER NOT NULL,
  PRIMARY KEY (channel, seq)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX withdrawn ON controls (channel, event);
CREATE TABLE options (
  channel INTEGER NOT NULL, event INTEGER NOT NULL, key TEXT, attempts INTEGER,
  PRIMARY KEY (channel, event)
) STRICT, WITHOUT ROWID;
CREATE INDEX keyed ON options (channel, key, event) WHERE key IS NOT NULL;
CREATE TABLE rounds (
  channel INTEGER NOT NULL, event INTEGER NOT NULL, device TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL, due INTEGER,
  PRIMARY KEY (channel, event, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX roundsByTime ON rounds (due, channel, event, device) WHERE due IS NOT NULL;
CREATE INDEX roundsOfDevice ON rounds (channel, device, event) WHERE due IS NOT NULL;
CREATE TABLE voided (
  channel INTEGER NOT NULL, event INTEGER NOT NULL, number INTEGER, after TEXT NOT NULL,
  PRIMARY KEY (channel, event)
) STRICT, WITHOUT ROWID;
`;

/** The event that an event repeats. */
const AGAIN = `ALTER TABLE options ADD COLUMN again INTEGER;`;

/** Tags of enrolled devices, and the `where` of events. The names that it fitted are in `targets`; `targeted` of such an event is 2. */
const TAGS = `
CREATE TABLE tags (
  channel INTEGER NOT NULL, device TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (channel, device, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX tagged ON tags (channel, name, value, device);
ALTER TABLE options ADD COLUMN "where" TEXT;
`;

/** "PERE" in the file's header, "PERB" in a backup's. Files of other programs are not touched. */
export const SCHEMA: Schema = {
  applicationId: 0x50455245,
  copyId: 0x50455242,
  steps: [
    TABLES,
    DEADLINES,
    AUDIENCES,
    FORMER_SECRETS,
    LEAVING,
    UNUSED,
    LOSSES,
    TRIMS,
    SCHEDULES,
    TRIES,
    ATTENTION,
    JOURNAL,
    STATES,
    AGAIN,
    TAGS,
  ],
};

/**
 * A row of `leaving`. Whatever the tables say, its device is not in the audience of events after `released`, up to `upTo`, that it sent no final
 * receipt for.
 */
export interface Leaving {
  readonly device: string;
  readonly joined: number;
  readonly upTo: number;
  released: number;
  /** When it was retired, milliseconds since 1970. */
  readonly at: number;
}

/** In a statement with an `events e`: it was not withdrawn. */
export const NOT_WITHDRAWN = "NOT EXISTS (SELECT 1 FROM controls w WHERE w.channel = e.channel AND w.event = e.seq)";

/** The codes of the final states, for `IN`. */
export const FINAL = STATE_NAMES.filter(isFinal).map(stateCode).join();

/** Whether the leaving device is still to be removed from an event. */
export const isLeaving = ({ leaving }: Channel, event: number): boolean =>
  leaving !== undefined && event > leaving.released && event <= leaving.upTo;

/** The counters of a channel: its row, cached while the channel is in use. */
export interface Channel {
  readonly id: number;
  readonly name: string;
  readonly epoch: string;
  head: number;
  floor: number;
  deletedUpTo: number;
  receiptsHead: number;
  receiptsFloor: number;
  audience: number;
  /** The newest event that every device lost that joined before it and owed something up to it; 0: none. */
  lostByAll: number;
  /** When retention may next have something to do, milliseconds since 1970; null: not before another event is pushed. */
  trimAt: number | null;
  /** Last sign of life of a device, milliseconds since 1970, in a channel that only feeds have created; null: the channel is in use. */
  touched: number | null;
  /** Events up to here are overdue if they have no deadline; and when the next event may become so, milliseconds since 1970; null: none will. */
  aged: number;
  agesAt: number | null;
  /** Kept control entries, and `nth` of the newest one. */
  controls: number;
  lastControl: number;
  /** The newest run in `audiences`; null: there is none yet. */
  addressed: number | null;
  /** The retired device that is still to be removed from events. */
  leaving?: Leaving;
}
