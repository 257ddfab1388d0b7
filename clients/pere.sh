#!/bin/sh
# A device for PERE out of a POSIX shell, its usual tools, and curl.
#
#   sh pere.sh URL CHANNEL DEVICE COMMAND
#   sh pere.sh http://127.0.0.1:4567 orders till-7 './print-order'
#
# It follows the channel (several: comma separated) and runs the command for each event, one after the other: the publisher's data on its input,
# PERE_EVENT_ID, PERE_EVENT_CHANNEL and PERE_EVENT_TYPE in its environment. Its end with status 0 is `done`, any other `failed`; the last line that
# it prints goes along, as far as it is ASCII.
#
#   PERE_TOKEN, PERE_TOKEN_FILE   a token, or a file that holds the newest one and is read for each request
#   PERE_STATE                    a folder for what must survive, one process at a time; ./pere-CHANNEL-DEVICE
#   PERE_FIRST_BYTE, PERE_SILENCE, PERE_RETURN   patience in seconds, as below
#
# On a bad network it comes back where it broke off, after what the service asked for (`retry:`, `Retry-After`) and a random time that doubles with
# each failure. Where nothing comes on the event stream, something on the way holds it back: then it asks by long-poll, and tries again later.
#
# An event is worked on once. What became of it is in the file `handled` before its final receipt leaves, and the position moves on when the
# receipt was answered; so a shell that is killed in between gives the receipt again and does not run the command again. Only where it is killed
# while the command runs does it run it again, because nobody knows how far it was. The files are not synced: a power cut may take the last moment.
#
# There is no JSON in a shell. This works because of what PERE promises: an event is {"id":"…","channel":"…",…,"data":…}, and nothing before the data
# can hold a quote.

# For the first byte of an event stream.
first_byte=${PERE_FIRST_BYTE:-5}
# For a sign of life on it: the service gives one each 15 s, and two may be late.
silence=${PERE_SILENCE:-40}
# On long-polls, before the event stream is tried again; doubled each time that it was in vain, four times at most.
return_after=${PERE_RETURN:-60}
# How long one long-poll rests (some proxies cut what is quiet for 30 s), and what an answer may take beyond.
poll_rest=25
answer_time=15
# The longest pause between two tries.
pause_max=30
# Outcomes that are kept; twice as many are let grow.
handled_max=1000

if [ $# -ne 4 ]; then
  echo "usage: sh pere.sh URL CHANNEL DEVICE COMMAND" >&2
  exit 2
fi
url=${1%/} channels=$2 device=$3 command=$4
state=${PERE_STATE:-./pere-$channels-$device}
newline='
'
carriage_return=$(printf '\r')
umask 077
mkdir -p "$state" || exit 1
pipe=$state/pipe.$$
rm -f "$state"/pipe.* "$state/heard" "$state/quiet" "$state/busy"
mkfifo "$pipe" || exit 1
touch "$state/handled" "$state/position"
position=$(cat "$state/position")
curl_id='' watch_id='' retry=0 failures=0 stream_again=0 held_back=0

say() { printf 'pere: %s\n' "$*" >&2; }

leave() {
  trap - EXIT
  kill $curl_id $watch_id 2>/dev/null
  rm -f "$pipe"
  exit "$1"
}
trap 'leave $?' EXIT
trap 'leave 130' INT
trap 'leave 143' TERM

# The newest token, as a line of curl's configuration: what stands in a file or a pipe is in nobody's list of processes.
authorization() {
  token=${PERE_TOKEN:-}
  [ -z "${PERE_TOKEN_FILE:-}" ] || token=$(cat "$PERE_TOKEN_FILE")
  [ -z "$token" ] || printf 'header = "Authorization: Bearer %s"\n' "$token"
}

# From the head of an answer in a file: its status; a field's number; whether PERE itself refused, and not something on the way.
status_in() { sed -n 's|^HTTP/[0-9.]* \([0-9]*\).*|\1|p' "$1" | tail -n 1; }
retry_after_in() { sed -n 's/^[Rr]etry-[Aa]fter: *\([0-9][0-9]*\).*/\1/p' "$1" | tail -n 1; }
is_problem() { grep -qi '^content-type: application/problem+json' "$1"; }

# Whether an answer is final. Without a file that may hold another token tomorrow, 401 and 403 are.
is_refused() {
  case $2 in
  401 | 403) [ -z "${PERE_TOKEN_FILE:-}" ] && is_problem "$1" ;;
  408 | 429) false ;;
  4??) is_problem "$1" ;;
  *) false ;;
  esac
}

# pause FAILURES AT_LEAST: sleeps a random time, of at most 1, 2, 4 … seconds, and at least what was asked for.
pause() {
  most=$pause_max
  [ "$1" -gt 5 ] || most=$((1 << ($1 - 1)))
  random=$(od -An -N2 -tu2 /dev/urandom)
  seconds=$((random % (most + 1)))
  [ "$seconds" -ge "$2" ] || seconds=$2
  sleep "$seconds"
}

# ------------------------------------------------------------------------------------------------------------- receipts

# give CHANNEL EVENT STATUS DETAIL: until it is answered; `received` is tried once, since a final word will follow.
give() {
  tries=0
  head=$state/receipt-head
  printf '{"event":"%s","status":"%s","detail":%s}' "$2" "$3" "$4" >"$state/receipt"
  while :; do
    : >"$head"
    curl -sS -K - -D "$head" -o "$state/answer" -m "$answer_time" -H 'Content-Type: application/json' \
      --data-binary "@$state/receipt" "$url/feedback/$1?device=$device" <<END
$(authorization)
END
    status=$(status_in "$head")
    case $status in
    2??) return ;;
    401 | 403)
      if is_refused "$head" "$status"; then
        say "refused: $(cat "$state/answer")"
        exit 1
      fi
      ;;
    esac
    if is_refused "$head" "$status"; then
      say "$3 of $2 was rejected: $(cat "$state/answer")"
      return
    fi
    after=$(retry_after_in "$head")
    if [ "$3" = received ]; then
      [ -z "$after" ] || sleep "$after"
      return
    fi
    tries=$((tries + 1))
    say "a receipt waits (status ${status:-none}); again"
    pause "$tries" "${after:-0}"
  done
}

# The last line of what the command printed, as a JSON text. ASCII alone: half a character would spoil the receipt.
detail_of() {
  LC_ALL=C tr -cd '\n\40-\176' <"$1" | sed '/^$/d' | tail -n 1 | cut -c 1-500 | sed 's/[\\"]/\\&/g; s/.*/"&"/'
}

# work EVENT: an event's JSON text.
work() {
  case $1 in '{"id":"'*) ;; *) return ;; esac
  about=${1%%',"data":'*}
  value=${1#*',"data":'}
  name=${about#'{"id":"'}
  name=${name%%'"'*}
  channel=${about#*'"channel":"'}
  channel=${channel%%'"'*}
  type=''
  case $about in *',"type":"'*)
    type=${about#*',"type":"'}
    type=${type%%'"'*}
    ;;
  esac
  outcome=$(grep "^$name " "$state/handled")
  if [ -z "$outcome" ]; then
    give "$channel" "$name" received null
    printf '%s' "${value%'}'}" >"$state/data"
    if PERE_EVENT_ID=$name PERE_EVENT_CHANNEL=$channel PERE_EVENT_TYPE=$type sh -c "$command" <"$state/data" >"$state/said" 2>&1; then
      detail=$(detail_of "$state/said")
      outcome="$name done ${detail:-null}"
    else
      code=$?
      detail=$(detail_of "$state/said")
      outcome="$name failed ${detail:-\"exit status $code\"}"
    fi
    printf '%s\n' "$outcome" >>"$state/handled"
    if [ "$(wc -l <"$state/handled")" -gt $((2 * handled_max)) ]; then
      tail -n "$handled_max" "$state/handled" >"$state/handled.new" && mv "$state/handled.new" "$state/handled"
    fi
  fi
  outcome=${outcome#* }
  give "$channel" "$name" "${outcome%% *}" "${outcome#* }"
}

# ---------------------------------------------------------------------------------------------------------------- feeds

keep_position() {
  position=$1
  printf '%s\n' "$position" >"$state/position.new" && mv "$state/position.new" "$state/position"
}

# Reads an event stream on its input, to its end. A message counts when its blank line has come.
read_messages() {
  id=$position event='' data=''
  while IFS= read -r line; do
    : >"$state/heard"
    line=${line%"$carriage_return"}
    case $line in
    '')
      case $event in
      pere.ready) failures=0 ;;
      pere.gap) say "events are no longer kept: $data" ;;
      pere.*) ;;
      *)
        : >"$state/busy"
        [ -z "$data" ] || work "$data"
        rm -f "$state/busy"
        ;;
      esac
      [ "$id" = "$position" ] || keep_position "$id"
      event='' data=''
      ;;
    id:*)
      id=${line#id:}
      id=${id# }
      ;;
    event:*)
      event=${line#event:}
      event=${event# }
      ;;
    data:*)
      line=${line#data:}
      data=$data${data:+$newline}${line# }
      ;;
    retry:*)
      line=${line#retry:}
      line=${line# }
      case $line in '' | *[!0-9]*) ;; *) retry=$(((line + 999) / 1000)) ;; esac
      ;;
    esac
  done
}

# Ends the stream's curl when nothing was heard for too long, and when the shell that reads it is gone.
watch() {
  quiet=0 most=$first_byte
  while kill -0 $$ 2>/dev/null; do
    sleep 1
    if [ -e "$state/heard" ] || [ -e "$state/busy" ]; then
      rm -f "$state/heard"
      quiet=0 most=$silence
    else
      quiet=$((quiet + 1))
    fi
    if [ "$quiet" -ge "$most" ]; then
      : >"$state/quiet"
      break
    fi
  done
  kill "$curl_id"
}

stream() {
  rm -f "$state/heard" "$state/quiet"
  curl -sSfN -K - -D "$1" -H 'Accept: text/event-stream' -H "Last-Event-ID: $position" \
    "$url/feed/$channels?device=$device" >"$pipe" <<END &
$(authorization)
END
  curl_id=$!
  watch >/dev/null 2>&1 &
  watch_id=$!
  read_messages <"$pipe"
  kill $curl_id $watch_id 2>/dev/null
  wait $curl_id $watch_id 2>/dev/null
  curl_id='' watch_id=''
  if [ -e "$state/quiet" ]; then
    say "nothing comes on the event stream, on with long-polls"
    stream_again=$(($(date +%s) + return_after * (1 << held_back)))
    [ "$held_back" -ge 4 ] || held_back=$((held_back + 1))
  else
    held_back=0
  fi
}

# The answer to a long-poll, {"events":[…],"last":"…"}, as an event stream: an event a message, and last the position. Split at its quotes: every
# other part is a string, save where the quote was escaped.
messages_of() {
  tr '\r\n' '  ' <"$1" | LC_ALL=C awk '{
    count = split($0, parts, "\""); inside = 0; depth = 0; key = ""; string = ""; text = ""
    for (i = 1; i <= count; i++) {
      part = parts[i]
      if (inside) {
        string = string part
        if (depth > 2) text = text "\"" part
        if (match(part, /\\+$/) && RLENGTH % 2 == 1) { string = string "\""; continue }
        if (depth > 2) text = text "\""
        else if (depth == 1 && key == "last") { last = string; key = "" }
        else if (depth == 1) key = string
        inside = 0
        continue
      }
      from = 1
      for (k = 1; k <= length(part); k++) {
        c = substr(part, k, 1)
        if (c == "{" || c == "[") { if (++depth == 3) { text = ""; from = k } }
        else if ((c == "}" || c == "]") && depth-- == 3 && key == "events") {
          print "data: " text substr(part, from, k - from + 1) "\n"
          text = ""
        }
      }
      if (depth > 2) text = text substr(part, from)
      inside = 1; string = ""
    }
    print "id: " last "\n"
  }'
}

poll() {
  rest=$((stream_again - $(date +%s)))
  [ "$rest" -le "$poll_rest" ] || rest=$poll_rest
  [ "$rest" -ge 1 ] || rest=1
  if curl -sSf -K - -D "$1" -o "$state/polled" -m $((rest + answer_time)) -H 'Accept: application/json' \
    -H "Last-Event-ID: $position" "$url/feed/$channels?device=$device&wait=$rest" <<END; then
$(authorization)
END
    messages_of "$state/polled" >"$state/messages"
    read_messages <"$state/messages"
    failures=0
    return 0
  fi
  return 1
}

while :; do
  : >"$state/head"
  if [ "$(date +%s)" -lt "$stream_again" ]; then
    poll "$state/head" && continue
    at_least=0
  else
    stream "$state/head"
    at_least=$retry
  fi
  status=$(status_in "$state/head")
  if is_refused "$state/head" "$status"; then
    say "refused: status $status"
    exit 1
  fi
  after=$(retry_after_in "$state/head")
  [ "${after:-0}" -le "$at_least" ] || at_least=$after
  failures=$((failures + 1))
  say "the feed ended (status ${status:-none}); coming back"
  pause "$failures" "$at_least"
done
