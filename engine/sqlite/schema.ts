/**
 * The tables of a PERE file.
 *
 * Small rows that change often (tallies) stand apart from large ones that never do (events). `latest` is a device's standing on an event and
 * points to the receipt that brought it there. `devices` has one row an enrolment, so a device that left and came back has two, and
 * the audience of every event follows from `joined` and `left` without a list of names; only `to` writes names down.
 *
 * A push to everybody writes one row, that of its event: with many channels each row is a page of its own on its way to the disk. So an event
 * has a row in `tallies` from its first answer on; before that its tally is how many it was addressed to, and `audiences` has that number for
 * runs of events, from the first one on. And a channel's `head` and `receiptsHead` are at least what its row says: its logs know better.
 *
 * Who is retired leaves in two steps: with the first, `devices` and `leaving` say that it is in no audience that it gave no final word to, and
 * from then on everybody is told so; the second takes it out of tallies and names, some events at a time, and a process that comes up goes on with it.
 *
 * `deadlines` has the events whose deadline is ahead or being dealt with; `after` is the last device that was.
 *
 * There is no index of receipts by device, on purpose: devices answer the same event at about the same time, so it would dirty a page a
 * receipt where `latest` dirties one for dozens. What a device owes is found from `settled`, the place below which it owes nothing, by
 * looking each later event up in `latest`; and `settled` follows the device every few seconds.
 */
import type { Schema } from "./group-commit.ts";

/** What the first version had. */
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

/** Deadlines, reminders, hooks; and which receipt completed its event. */
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

/** How many devices were enrolled when an event to everybody was pushed, and those after it up to the next row. */
const AUDIENCES = `
CREATE TABLE audiences (
  channel INTEGER NOT NULL, event INTEGER NOT NULL, addressed INTEGER NOT NULL,
  PRIMARY KEY (channel, event)
) STRICT, WITHOUT ROWID;
`;

/** The secrets that a hook had before: `FormerSecret`. */
const FORMER_SECRETS = `ALTER TABLE hooks ADD COLUMN former TEXT NOT NULL DEFAULT '';`;

/** The device of a channel that was retired and is still to be taken out of the events after `released`, up to `upTo`; at most one a channel. */
const LEAVING = `
CREATE TABLE leaving (
  channel INTEGER PRIMARY KEY, device TEXT NOT NULL, joined INTEGER NOT NULL, upTo INTEGER NOT NULL, released INTEGER NOT NULL, at INTEGER NOT NULL
) STRICT;
`;

/** Channels that feeds alone have made, and when one of their devices was last heard from; null: the channel is in use. */
const UNUSED = `
ALTER TABLE channels ADD COLUMN touched INTEGER;
CREATE INDEX unused ON channels (touched) WHERE touched IS NOT NULL;
`;

/** "PERE" in the file's header, "PERB" in a backup's: a file that is another program's is left alone. */
export const SCHEMA: Schema = {
  applicationId: 0x50455245,
  copyId: 0x50455242,
  steps: [TABLES, DEADLINES, AUDIENCES, FORMER_SECRETS, LEAVING, UNUSED],
};

/** A row of `leaving`. Its device is in the audience of no event after `released`, up to `upTo`, that it gave no final word on, whatever is written there. */
export interface Leaving {
  readonly device: string;
  readonly joined: number;
  readonly upTo: number;
  released: number;
  /** When it was retired, milliseconds since 1970. */
  readonly at: number;
}

/** Whether a device that leaves is still to be taken out of an event. */
export const isLeaving = ({ leaving }: Channel, event: number): boolean =>
  leaving !== undefined && event > leaving.released && event <= leaving.upTo;

/** The counters of a channel: its row, held in memory while it is in use. */
export interface Channel {
  readonly id: number;
  readonly name: string;
  readonly epoch: string;
  head: number;
  floor: number;
  swept: number;
  receiptsHead: number;
  receiptsFloor: number;
  audience: number;
  /** When a device of a channel that only feeds have made was last heard from, milliseconds since 1970; null: the channel is in use. */
  touched: number | null;
  /** The newest run in `audiences`; null: there is none yet. */
  addressed: number | null;
  /** Who was retired and is still to be taken out of events. */
  leaving?: Leaving;
  /** Retention's place among the devices that owe the event after `floor`; in memory only, and begun anew when it is lost. */
  marked?: string;
}
