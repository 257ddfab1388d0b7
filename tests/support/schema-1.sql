-- The tables of the first version, as its files have them. Files are out there: this never changes.
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
