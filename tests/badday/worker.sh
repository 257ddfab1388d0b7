#!/bin/sh
# The work of a client that runs a command for each event, as client.ts demands it: a line in the record, then done, held up or failed.
# Where the record is gone, the test is over.
data=$(tr '\n' ' ')
printf '%s %s\n' "$PERE_EVENT_ID" "$data" >>"$PERE_RECORD" || exit 1
case $data in
*'"hold": true'*) while [ -e "$PERE_RECORD" ] && [ ! -e "$PERE_RECORD.go" ]; do sleep 0.05; done ;;
*'"stop": true'*) while [ -e "$PERE_RECORD" ] && [ ! -e "$PERE_RECORD.go" ]; do sleep 0.05; done; exit 1 ;;
*'"defer": 1'*) [ "$PERE_ROUND" -gt 1 ] || { echo PERE_AFTER=1; exit 75; } ;;
*'"defer": 2'*) [ "$PERE_ROUND" -gt 2 ] || { echo PERE_AFTER=1; exit 75; } ;;
*'"fail": true'*) echo "it was asked to fail" >&2; exit 1 ;;
esac
