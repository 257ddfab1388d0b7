#!/bin/sh
# A device for PERE that needs only a POSIX shell, its usual tools, and curl.
#
#   sh pere.sh URL CHANNEL DEVICE COMMAND
#   sh pere.sh http://127.0.0.1:4567 orders till-7 './print-order'
#
# It follows the channel, or several separated by commas, and runs the command for each event, one after the other. The command has the event's data on
# its standard input, and PERE_EVENT_ID, PERE_EVENT_CHANNEL, PERE_EVENT_TYPE and PERE_ROUND in its environment.
#
# If the command exits with status 0, the event is `done`. Its output becomes the detail of the receipt: as JSON if all of it or its last line is JSON,
# otherwise the last line as text. Any other status is `failed`, with the last line of the error output, or else of the output, as the detail.
#
# Status 75 (EX_TEMPFAIL) is `deferred`: the service sends the event again later, and the command runs again, with PERE_ROUND 2, 3 and so on. The last line
# of its output may say when: PERE_AFTER=600 for ten minutes (1 to 86400 seconds; without it, one minute). A failed event that was pushed with `attempts`
# comes again too; after PERE_AFTER, if the output says so, and not at all after the last line PERE_RETRY=no.
#
# If the event is withdrawn, its command is not begun. One that runs gets TERM; a script that starts other programs passes it on with `trap`. If it then
# ends with status 0, the event is `done` all the same; otherwise no receipt is sent, and the event does not come again.
#
# The event stays open, and the command runs again, if it could not be run (status 126 or 127), if HUP, INT, QUIT, KILL, PIPE or TERM ended it (status 128
# plus the number of the signal), or if it fails while PERE_STATE can't be written to or while this program is being stopped.
#
# Environment:
#   PERE_TOKEN         the token
#   PERE_TOKEN_FILE    a file with the newest token, which is read for each request
#   PERE_STATE         a folder for the position and the outcomes, for one process at a time (default: ./pere-CHANNEL-DEVICE)
#   PERE_FIRST_BYTE    how long to wait for the start of an event stream, in seconds (default: 5)
#   PERE_SILENCE       the longest silence on an event stream, in seconds (default: 40)
#   PERE_RETURN        how long to use long-polling before the event stream is tried again, in seconds (default: 60)
#   HTTP_PROXY, HTTPS_PROXY, NO_PROXY    the proxy to use, and the hosts to connect to directly
#
# Exit status: 2 for an invalid argument or setting, 1 if the service refuses the device, 128 plus its number after a signal.

# On a bad network: when the stream breaks, it resumes from its position after the delay that the service asked for (`retry:`, `Retry-After`), and at least
# after a random delay that doubles with each failure. If nothing comes on the event stream, a proxy holds it back: then it uses long-polling, and
# tries the stream again later.
#
# It works on each event once. It writes the outcome to the file `handled` before it sends the final receipt, and moves the position on when the receipt was
# answered. A shell that is killed in between sends the receipt again without running the command again. If it is killed while the command runs, it runs
# the command again, because nobody knows how far it was. The files are not synced, so a power cut may lose the last moment.
#
# A line of `handled` is an event's id, its status and the detail. The status may have `:` and an option (seconds, or `no`), and `@` and the round if that is
# not 1. `open` in its place takes an earlier line back.
#
# While a command runs, another process reads on, and keeps what it reads in a pipe. It ends the command if it sees that the event is withdrawn.
#
# A shell has no JSON. This works because of what PERE promises: an event is {"id":"…","channel":"…",…,"data":…}, and nothing before the data can contain a
# quote; the answer to one receipt is {"recorded":…,"duplicate":…,"rejected":[]}; a refusal begins with {"type":"urn:pere:. Anything else is not PERE's
# and is ignored. Nothing that comes from outside is used before its characters are checked.

# The longest wait for the first byte of an event stream, in seconds.
first_byte=${PERE_FIRST_BYTE:-5}
# The longest silence on it. The service sends something every 15 s; two of these may be late.
silence=${PERE_SILENCE:-40}
# How long long-polling is used before the event stream is tried again. It doubles with each failed try, four times at most.
return_after=${PERE_RETURN:-60}
# How long one long-poll waits (some proxies cut connections that are quiet for 30 s), and the longest wait for an answer beyond that.
poll_rest=25
answer_time=15
# The longest random delay between two tries; the longest delay that is accepted from an answer; and the longest that is granted.
pause_max=30
asked_max=86400
asked_cut=3600
# Redirects that are followed for one request.
redirects_max=5
# Outcomes that are kept. The file is cut to these when it has twice as many.
handled_max=1000
# The longest detail that the service accepts, in bytes, and its most levels of nesting.
detail_bytes_max=4096
detail_depth_max=32

# If nobody reads the error output any more, that is no reason to stop.
log() { (printf 'pere: %s\n' "$*" 2>/dev/null) >&2 || :; }

usage_error() {
  log "$*"
  exit 2
}

# Names and patterns are bytes here. The command gets the original locale.
locale=${LC_ALL-unset}
LC_ALL=C

newline='
'
carriage_return=$(printf '\r')
blanks=$(printf ' \t\r\n.')
blanks=${blanks%.}

is_name() {
  case $1 in '' | *[!A-Za-z0-9._:~-]*) return 1 ;; esac
  [ ${#1} -le 128 ]
}
is_channels() {
  case ",$1" in *,[!A-Za-z0-9]* | *,) return 1 ;; esac
  case $1 in *[!A-Za-z0-9._:~,-]*) return 1 ;; esac
}
is_position() {
  case $1 in '' | *[!A-Za-z0-9._:~-]*) return 1 ;; esac
}
is_seconds() {
  case $1 in '' | 0* | *[!0-9]* | ??????*) return 1 ;; esac
  [ "$1" -le "$asked_max" ]
}
is_token() {
  case $1 in '' | *[!A-Za-z0-9._-]*) return 1 ;; esac
}
is_address() {
  case $1 in http://[[A-Za-z0-9]* | https://[[A-Za-z0-9]*) ;; *) return 1 ;; esac
  case $1 in *[!][A-Za-z0-9._:~/%-]*) return 1 ;; esac
  authority=${1#*://}
  authority=${authority%%/*}
  case $authority in
  *]) ;;
  *:*)
    case ${authority##*:} in '' | 0* | *[!0-9]* | ??????*) return 1 ;; esac
    [ "${authority##*:}" -le 65535 ] || return 1
    case ${authority%:*} in '' | \[*]) ;; *:*) return 1 ;; esac
    ;;
  esac
}

# trim TEXT: sets $trimmed to the text without surrounding whitespace.
trim() {
  trimmed=${1#"${1%%[!$blanks]*}"}
  trimmed=${trimmed%"${trimmed##*[!$blanks]}"}
}

case ${1:-} in -h | --help)
  # The comment at the top of this file.
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
  exit
  ;;
esac
[ $# -eq 4 ] || usage_error "usage: sh pere.sh URL CHANNEL DEVICE COMMAND; see --help"
command -v curl >/dev/null 2>&1 || usage_error "curl is needed, but it is not on the PATH"
url=${1%/} channels=$2 device=$3 command=$4
case $url in *://*) ;; *) url=http://$url ;; esac
is_address "$url" || usage_error "the address of the service must be http://host:port or https://host:port, without a query: $1"
is_channels "$channels" || usage_error "a channel name must be 1 to 128 of A-Z a-z 0-9 . _ : ~ - and begin with a letter or digit; separate several with commas: $2"
is_name "$device" || usage_error "a device name must be 1 to 128 of A-Z a-z 0-9 . _ : ~ -: $3"
trim "$command"
[ -n "$trimmed" ] || usage_error "the command must not be empty"
for seconds in "$first_byte" "$silence" "$return_after"; do
  is_seconds "$seconds" || usage_error "PERE_FIRST_BYTE, PERE_SILENCE and PERE_RETURN must be whole seconds from 1 to $asked_max: $seconds"
done
token_file=${PERE_TOKEN_FILE:-}
trim "${PERE_TOKEN:-}"
token=$trimmed
[ -z "$token" ] || is_token "$token" || usage_error "PERE_TOKEN is not a JWT: it contains characters other than A-Z a-z 0-9 . _ -"
scheme=${url%%://*}
origin=$scheme://${url#*://}
origin=$scheme://$(printf '%s' "${origin#*://}" | sed 's|/.*||')

state=${PERE_STATE:-./pere-$channels-$device}
case $state in /*) ;; *) state=./$state ;; esac
umask 077
mkdir -p "$state" 2>/dev/null
[ -d "$state" ] && [ -w "$state" ] || usage_error "PERE_STATE must be a folder that can be written to: $state"
for kept in handled position; do
  [ ! -e "$state/$kept" ] || [ -f "$state/$kept" ] || usage_error "$state/$kept must be a regular file"
done
# A symbolic link is resolved: it would be replaced when the file is rewritten.
handled=$(readlink -f "$state/handled" 2>/dev/null) || handled=$state/handled
position_file=$(readlink -f "$state/position" 2>/dev/null) || position_file=$state/position
pipe=$state/pipe.$$
rm -f "$state"/pipe.* "$state"/withdrawn.* "$state/heard" "$state/quiet" "$state/busy" "$state/running"
mkfifo "$pipe" "$pipe.out" || exit 1
touch "$handled" "$position_file" || exit 1
# A last line that was written in part only is not an outcome.
if [ -n "$(tail -c 1 "$handled" | tr '\0' ' ')" ]; then
  sed '$d' "$handled" >"$handled.new" && mv "$handled.new" "$handled" || usage_error "$state can't be written to"
fi
position=$(tr '\0' ' ' <"$position_file")
is_position "$position" || position=''
curl_id='' watch_id='' forward_id='' look_id='' sleep_id='' retry=0 failures=0 stream_again=0 held_back=0 redirects=0 moved=''
# is_torn: a line end, if the last line of `handled` was written in part only. receipts_at: when receipts are sent again after the service asked for a delay.
is_torn='' receipts_at=0
# working: an event is being worked on. ending: a signal came meanwhile; the status to exit with.
working='' ending=''
# polled: in an answer to a long-poll, the position behind it.
polled=''

quit() {
  trap - EXIT
  kill $curl_id $watch_id $forward_id $look_id $sleep_id 2>/dev/null
  rm -f "$pipe" "$pipe.out"
  exit "$1"
}
# After the first signal, an event that is being worked on is finished. A second signal ends the program at once.
on_signal() {
  [ -n "$working" ] && [ -z "$ending" ] || quit "$1"
  ending=$1
}
trap 'quit $?' EXIT
trap 'on_signal 129' HUP
trap 'on_signal 130' INT
trap 'on_signal 131' QUIT
trap 'on_signal 143' TERM

# Sleeps, but a signal ends it.
sleep_until_signal() {
  sleep "$1" &
  sleep_id=$!
  wait "$sleep_id"
  sleep_id=''
}

# Seconds on a clock that is never set, if the system has one.
now() {
  if read -r up rest_of_line 2>/dev/null </proc/uptime; then
    printf '%s\n' "${up%%.*}"
  else
    date +%s
  fi
}

# make_empty FILE: makes an empty file. If that fails, a bare `:` would end the shell.
make_empty() { true >"$1"; } 2>/dev/null

# Sets $authorization to the newest token as a line of curl's configuration. curl reads that from a pipe, so the token is in no list of processes.
authorize() {
  if [ -n "$token_file" ]; then
    trim "$(tr '\0' ' ' 2>/dev/null <"$token_file")"
    token=$trimmed
    if ! is_token "$token"; then
      log "no token: $token_file can't be read or does not contain a JWT"
      return 1
    fi
  fi
  authorization=''
  [ -z "$token" ] || authorization="header = \"Authorization: Bearer $token\""
}

# From a file with the headers of an answer: its status, and the value of a header.
status_in() { sed -n 's|^HTTP/[0-9.]* \([0-9]*\).*|\1|p' "$1" | tail -n 1; }
field_in() {
  awk -v name="$2" '/^HTTP\// { value = "" } {
    at = index($0, ":")
    if (value == "" && tolower(substr($0, 1, at - 1)) == name) { value = substr($0, at + 1); gsub(/^[ \t]+|[ \t\r]+$/, "", value) }
  } END { print value }' "$1"
}
# The beginning of a file, in printable characters.
printable_start() { head -n 20 "$1" | cut -c 1-1000 | tr -cd '\40-\176' | cut -c 1-1000; }

# asked_seconds TEXT: the seconds of a Retry-After header, 0 if it is missing or invalid.
asked_seconds() {
  case $1 in
  '' | *[!0-9]* | ??????*) echo 0 ;;
  *) if [ "$1" -gt "$asked_max" ]; then echo 0; elif [ "$1" -gt "$asked_cut" ]; then echo "$asked_cut"; else echo "$1"; fi ;;
  esac
}

# is_refusal STATUS BODY: whether PERE itself refuses for good. 401 and 403 are final unless a token file may contain another token later.
is_refusal() {
  case $2 in '{"type":"urn:pere:'*) ;; *) return 1 ;; esac
  case $1 in
  401 | 403) [ -z "$token_file" ] ;;
  408 | 425 | 429) return 1 ;;
  4??) ;;
  *) return 1 ;;
  esac
}

# is_moved STATUS LOCATION: whether to repeat the request at another address, in $moved: 307 and 308 are followed to the same origin.
is_moved() {
  case $1 in
  307 | 308) [ "$redirects" -lt "$redirects_max" ] || return 1 ;;
  *) return 1 ;;
  esac
  case $2 in
  *[!!-~]*) return 1 ;;
  "$origin"/*) moved=$2 ;;
  //*) return 1 ;;
  /*) moved=$origin$2 ;;
  *) return 1 ;;
  esac
  redirects=$((redirects + 1))
}

# status_text STATUS LOCATION PATH: what the status of a request for a path means, for a message.
status_text() {
  case $1 in
  3??)
    place_to_use=$(printf '%s' "$2" | tr -cd '\41-\176' | cut -c 1-300)
    place_to_use=${place_to_use%%\?*}
    printf 'redirected with status %s: use the address %s' "$1" "${place_to_use%"$3"}"
    ;;
  *) printf 'status %s' "${1:-none}" ;;
  esac
}

# back_off FAILURES AT_LEAST: sleeps for a random time of at most 1, 2, 4 … seconds, and at least as long as the service asked for.
back_off() {
  most=$pause_max
  [ "$1" -gt 5 ] || most=$((1 << ($1 - 1)))
  random=$(od -An -N2 -tu2 /dev/urandom)
  seconds=$((random % (most + 1)))
  [ "$seconds" -ge "$2" ] || seconds=$2
  sleep_until_signal "$seconds"
}

# ------------------------------------------------------------------------------------------------------------- receipts

# send_receipt CHANNEL EVENT STATUS DETAIL OPTION: sends a receipt of the current round until it is answered. `received` is tried once and never delays the
# work: another receipt follows. The option is that of `handled`. Sets $is_rejected.
send_receipt() {
  case $5 in
  '') more='' ;;
  no) more=',"retry":false' ;;
  *) more=",\"after\":$5" ;;
  esac
  is_rejected=''
  tries=0 receipt_after=0 receipt_status='' receipt_location='' redirects=0 moved=''
  head=$state/receipt-head answer=$state/answer
  rest=$((receipts_at - $(now)))
  if [ "$rest" -gt 0 ] && [ "$rest" -le "$asked_cut" ]; then
    [ "$3" != received ] || return
    [ -n "$ending" ] || sleep_until_signal "$rest"
  fi
  receipts_at=0
  while :; do
    if authorize && printf '{"event":"%s","status":"%s","round":%s%s,"detail":%s}' "$2" "$3" "$round" "$more" "$4" >"$state/receipt"; then
      make_empty "$head"
      make_empty "$answer"
      http_proxy=${http_proxy:-${HTTP_PROXY:-}} curl -sSg --no-location -K - -D "$head" -o "$answer" -m "$answer_time" \
        -H 'Content-Type: application/json' --data-binary "@$state/receipt" "${moved:-$url/feedback/$1?device=$device}" <<END
$authorization
END
      receipt_status=$(status_in "$head")
      receipt_location=$(field_in "$head" location)
      is_moved "$receipt_status" "$receipt_location" && continue
      receipt_after=$(asked_seconds "$(field_in "$head" retry-after)")
      body=$(printable_start "$answer")
      if [ "$receipt_status" = 200 ]; then
        case $(sed -n 's/^{"recorded":\([01]\),"duplicate":\([01]\),"rejected":\[]\(,.*\)\{0,1\}}$/\1\2/p' "$answer") in
        01 | 10)
          late=$(sed -n 's/.*,"late":\[{"index":0,"event":"'"$2"'","reason":"\([a-z]*\)"}].*/\1/p' "$answer")
          [ -z "$late" ] || log "$3 of $2 was recorded, but late: $late"
          # If the answer lists late receipts, this one must be among them.
          [ -z "$late" ] && grep -q '"late":' "$answer" || return
          ;;
        esac
      elif is_refusal "$receipt_status" "$body"; then
        case $receipt_status in
        401 | 403)
          log "refused: $body"
          quit 1
          ;;
        400 | 413 | 422)
          # If the answer lists rejected receipts, this one must be among them.
          case $body in
          *'"rejected":[{"index":0,"event":"'"$2"'","reason":"'*) is_ours=1 ;;
          *'"rejected":'*) is_ours='' ;;
          *) is_ours=1 ;;
          esac
          if [ -n "$is_ours" ]; then
            log "$3 of $2 was rejected: $body"
            is_rejected=1
            return
          fi
          ;;
        esac
      fi
    fi
    redirects=0 moved=''
    # When this program is being stopped, it tries once; the next run sends the receipt.
    [ -z "$ending" ] || quit "$ending"
    if [ "$3" = received ]; then
      [ "$receipt_after" = 0 ] || receipts_at=$(($(now) + receipt_after))
      return
    fi
    tries=$((tries + 1))
    log "a receipt could not be sent ($(status_text "$receipt_status" "$receipt_location" "/feedback/$1")); trying again"
    back_off "$tries" "$receipt_after"
  done
}

# json_in FILE: the output of a command as JSON, in ASCII and on one line: all of it, or its last line; nothing if neither is JSON. With `text`, the last
# line as a string of up to 500 characters. awk reads the bytes as numbers, because awks differ in how they read bytes that are not ASCII.
json_in() {
  [ "$(wc -c <"$1")" -le "$detail_bytes_max" ] && is_whole=1 || is_whole=0
  tail -c "$detail_bytes_max" "$1" | od -An -v -tu1 | awk -v is_whole="$is_whole" -v is_text="${2:-}" -v depth_max="$detail_depth_max" -v bytes_max="$detail_bytes_max" '
    function is_blank(c) { return c == 32 || c == 9 || c == 10 || c == 13 }
    # One character as JSON has it, from the bytes at i on; at is then its last byte.
    function character(i, to,   c, more, code) {
      c = b[i]; at = i
      if (c < 128) return sprintf("%c", c)
      more = c >= 240 && c < 245 ? 3 : c >= 224 && c < 240 ? 2 : c >= 194 && c < 224 ? 1 : 0
      if (more == 0 || i + more > to) return "\\ufffd"
      code = more == 3 ? c - 240 : more == 2 ? c - 224 : c - 192
      for (c = 1; c <= more; c++) {
        if (b[i + c] < 128 || b[i + c] > 191) return "\\ufffd"
        code = code * 64 + b[i + c] - 128
      }
      if ((more == 2 && (code < 2048 || (code >= 55296 && code < 57344))) || (more == 3 && (code < 65536 || code > 1114111))) return "\\ufffd"
      at = i + more
      if (code < 65536) return sprintf("\\u%04x", code)
      code -= 65536
      return sprintf("\\u%04x\\u%04x", 55296 + int(code / 1024), 56320 + code % 1024)
    }
    # A string from its quote on; at is then its last byte, or 0.
    function string_at(i, to,   text, escape, n) {
      text = "\""
      for (i++; i <= to; i = at + 1) {
        at = i
        if (b[i] == 34) return text "\""
        if (b[i] < 32) break
        if (b[i] != 92) { text = text character(i, to); continue }
        escape = sprintf("%c", b[++at])
        if (at > to || !index("\"\\/bfnrtu", escape)) break
        text = text "\\" escape
        for (n = 0; escape == "u" && n < 4; n++) {
          if (++at > to || !index("0123456789abcdefABCDEF", sprintf("%c", b[at]))) { at = 0; return "" }
          text = text sprintf("%c", b[at])
        }
      }
      at = 0
      return ""
    }
    # Whether these bytes are JSON; its text is then in json. want: v a value, V or the end of a list, k a key, K or the end of an object, : or ,
    function is_json(i, to,   c, want, depth, word) {
      want = "v"; depth = 0; json = ""
      for (; i <= to; i++) {
        c = b[i]
        if (is_blank(c)) { json = json " "; continue }
        if (c == 34 && want != "," && want != ":") {
          json = json string_at(i, to)
          if (at == 0) return 0
          i = at; want = want == "k" || want == "K" ? ":" : ","
          continue
        }
        if ((c == 93 && (want == "V" || want == ",") && kind[depth] == "[") || (c == 125 && (want == "K" || want == ",") && kind[depth] == "{")) {
          if (depth-- == 0) return 0
          want = ","
        }
        else if (want == ":" && c == 58) want = "v"
        else if (want == "," && c == 44 && depth > 0) want = kind[depth] == "[" ? "v" : "k"
        else if ((want == "v" || want == "V") && (c == 91 || c == 123)) {
          if (++depth > depth_max) return 0
          kind[depth] = sprintf("%c", c); want = c == 91 ? "V" : "K"
        }
        else if (want == "v" || want == "V") {
          word = ""
          while (i <= to && b[i] < 128 && sprintf("%c", b[i]) ~ /[-+.0-9A-Za-z]/) word = word sprintf("%c", b[i++])
          if (word !~ /^(true|false|null|-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?)$/) return 0
          json = json word; want = ","; i--
          continue
        }
        else return 0
        json = json sprintf("%c", c)
      }
      return want == "," && depth == 0 && length(json) <= bytes_max
    }
    # A string of these bytes as they are.
    function text_of(i, to,   text, c, n) {
      for (; i <= to && n < 500 && length(text) < 3000; i++) {
        c = character(i, to); i = at
        if (b[at] < 32 || b[at] == 127) continue
        text = text (c == "\"" || c == "\\" ? "\\" c : c); n++
      }
      return text == "" ? "" : "\"" text "\""
    }
    { for (i = 1; i <= NF; i++) b[++count] = $i + 0 }
    END {
      first = 1; last = count; kind[0] = ""
      while (first <= last && is_blank(b[first])) first++
      while (last >= first && is_blank(b[last])) last--
      if (first > last) exit
      if (!is_text && is_whole == 1 && is_json(first, last)) { print json; exit }
      for (start = last; start > first && b[start - 1] != 10; ) start--
      while (start < last && is_blank(b[start])) start++
      if (is_text) { print text_of(start, last); exit }
      # A line that is cut off at its beginning does not count.
      if ((is_whole == 1 || start > first) && is_json(start, last)) print json
    }'
}

# is_withdrawn: whether it is known that the current event was withdrawn.
is_withdrawn() { [ -e "$state/withdrawn.$event_id" ]; }

# Runs the command for the current event. It notes its process first, for whoever has to end it, and looks then whether it has to end: a withdrawal notes
# itself first, and looks for the process then, so one of them sees the other.
run_command() {
  case $locale in unset) unset LC_ALL ;; *) LC_ALL=$locale ;; esac
  PERE_EVENT_ID=$event_id PERE_EVENT_CHANNEL=$channel PERE_EVENT_TYPE=$type PERE_ROUND=$round exec sh -c '
    { printf "%s %s\n" "$PERE_EVENT_ID" "$$" >"$1"; } 2>/dev/null
    [ ! -e "$2" ] || kill -s TERM "$$"
    exec sh -c "$3"' sh "$state/running" "$state/withdrawn.$event_id" "$command"
}

# take_wish: sets $option to what the last line of the output says about another try, and takes that line away.
take_wish() {
  option=''
  wish=$(tail -c 100 "$state/output" | tail -n 1 | tr -d '\r\0')
  case $wish in
  PERE_AFTER=*)
    option=${wish#PERE_AFTER=}
    if ! is_seconds "$option"; then
      log "PERE_AFTER must be whole seconds from 1 to $asked_max, not $(printf '%s' "$option" | tr -cd '\40-\176'); the default is used"
      option=''
    fi
    ;;
  PERE_RETRY=no) [ "$1" = 75 ] || option=no ;;
  *) return ;;
  esac
  sed '$d' "$state/output" >"$state/output.new" && mv "$state/output.new" "$state/output"
}

# detail_of_failure CODE: the end of the error output, or else of the output.
detail_of_failure() {
  detail=$(json_in "$errors" text)
  [ -n "$detail" ] || detail=$(json_in "$state/output" text)
  printf '%s\n' "${detail:-\"exit status $1\"}"
}

# outcome_of VALUE: runs the command until the outcome is known, and sets $word, $option and $detail. If the command can't be run, the event stays open. If
# the event is withdrawn before that, $word is empty.
outcome_of() {
  tries=0
  errors=$state/errors
  while :; do
    [ -z "$ending" ] || quit "$ending"
    why='' detail='' option='' word=''
    ! is_withdrawn || return
    if printf '%s' "$1" >"$state/data" && make_empty "$state/output" && make_empty "$errors"; then
      [ -z "$polled" ] || look_for_withdrawal
      (run_command) <"$state/data" >"$state/output" 2>"$errors"
      code=$?
      rm -f "$state/running"
      [ -z "$look_id" ] || kill $look_id 2>/dev/null
      look_id=''
      case $code in
      0)
        detail=$(json_in "$state/output")
        [ -n "$detail" ] || detail=$(json_in "$state/output" text)
        word=done detail=${detail:-null}
        return
        ;;
      esac
      # Whatever else it says, it was told to end, or nobody waits for it any more.
      ! is_withdrawn || return
      case $code in
      75)
        take_wish 75
        detail=$(json_in "$state/output")
        [ -n "$detail" ] || detail=$(json_in "$state/output" text)
        [ -n "$detail" ] || detail=$(json_in "$errors" text)
        word=deferred detail=${detail:-null}
        return
        ;;
      126 | 127) why="the command could not be run: $(printable_start "$errors")" ;;
      129 | 130 | 131 | 137 | 141 | 143) why="the command was ended by signal $((code - 128))" ;;
      *)
        [ -z "$ending" ] || quit "$ending"
        # The command may have failed because its output goes to a disk that is full.
        # Without the note of its process there is room for a block again.
        if dd if=/dev/zero of="$state/probe" bs=4096 count=2 2>/dev/null; then
          take_wish "$code"
          word=failed detail=$(detail_of_failure "$code")
          return
        fi
        why="the command ended with status $code, but $state can't be written to"
        ;;
      esac
    else
      why="$state can't be written to"
    fi
    tries=$((tries + 1))
    log "$event_id stays open: $why"
    [ -z "$ending" ] || quit "$ending"
    back_off "$tries" 1
  done
}

# keep_outcome LINE: writes a line to `handled`.
keep_outcome() {
  if printf '%s%s\n' "$is_torn" "$1" >>"$handled"; then
    is_torn=''
  else
    log "the outcome of $event_id could not be stored"
    is_torn=$newline
  fi
  if [ "$(wc -l <"$handled")" -gt $((2 * handled_max)) ]; then
    tail -n "$handled_max" "$handled" >"$handled.new" && mv "$handled.new" "$handled"
  fi
}

# read_outcome: sets $word, $option and $detail to what is known of the current event, and $word to nothing if the command is to run: nothing is known, or
# the event comes again, with a later round, after it was deferred or failed with attempts left.
read_outcome() {
  word=$(grep "^$event_id " "$handled" | tail -n 1)
  [ -n "$word" ] || return
  word=${word#* }
  detail=${word#* }
  word=${word%% *}
  option='' kept_round=1
  case $word in *@*) kept_round=${word##*@} word=${word%@*} ;; esac
  case $word in *:*) option=${word#*:} word=${word%%:*} ;; esac
  case $word in
  done) ;;
  deferred | failed) [ "$round" -le "$kept_round" ] || [ "$word:$option" = failed:no ] || word='' ;;
  *) word='' ;;
  esac
}

# handle_event EVENT: works on an event, given as its JSON text, and sends its receipts.
handle_event() {
  about=${1%%',"data":'*}
  value=${1#*',"data":'}
  event_id=${about#'{"id":"'}
  event_id=${event_id%%'"'*}
  channel=${about#*'"channel":"'}
  channel=${channel%%'"'*}
  type=''
  case $about in *',"type":"'*)
    type=${about#*',"type":"'}
    type=${type%%'"'*}
    ;;
  esac
  round=1
  case $about in *',"round":'*)
    round=${about#*',"round":'}
    round=${round%%,*}
    ;;
  esac
  case $round in '' | 0* | *[!0-9]* | ???????*) event_id='' ;; esac
  case $1 in '{"id":"'*'","channel":"'*',"data":'*'}') ;; *) event_id='' ;; esac
  if ! is_position "$event_id" || ! is_name "$channel" || ! is_channels "$channel"; then
    log "the feed sent something that is not an event: $(printf '%s' "$1" | tr -cd '\40-\176' | cut -c 1-100)"
    return
  fi
  read_outcome
  if [ -z "$word" ]; then
    ! is_withdrawn || return
    send_receipt "$channel" "$event_id" received null ''
    outcome_of "${value%'}'}"
    [ -n "$word" ] || return
    at_round=''
    [ "$round" = 1 ] || at_round=@$round
    keep_outcome "$event_id $word${option:+:$option}$at_round $detail"
  fi
  send_receipt "$channel" "$event_id" "$word" "$detail" "$option"
  # A service that knows no deferral sends it again in the same round.
  [ "$word$is_rejected" != deferred1 ] || keep_outcome "$event_id open null"
}

# ---------------------------------------------------------------------------------------------------------------- feeds

keep_position() {
  position=$1
  printf '%s\n' "$position" >"$position_file.new" && mv "$position_file.new" "$position_file"
}

# note_withdrawal DATA: notes that an event was withdrawn, and ends its command if that runs.
note_withdrawal() {
  gone=${1#*'"withdrawn":"'}
  gone=${gone%%'"'*}
  is_position "$gone" || return
  make_empty "$state/withdrawn.$gone"
  running=''
  { read -r running process <"$state/running"; } 2>/dev/null
  [ "$running" != "$gone" ] || kill -s TERM "$process" 2>/dev/null
}

# forward READY: passes an event stream on, and notes withdrawals as soon as they come. Without READY they count when the stream has begun as PERE's do.
forward() {
  event='' data='' is_ready=$1
  while IFS= read -r line; do
    bare=${line%"$carriage_return"}
    case $bare in
    '')
      case $event in
      pere.ready) case $data in '{'*'"channels":{'*) is_ready=1 ;; esac ;;
      pere.withdrawn) [ -z "$is_ready" ] || note_withdrawal "$data" ;;
      esac
      event='' data=''
      ;;
    event:*)
      event=${bare#event:}
      event=${event# }
      ;;
    data:*)
      bare=${bare#data:}
      data=${data:-${bare# }}
      ;;
    esac
    printf '%s\n' "$line" || return
  done
  # A problem document has no line end.
  printf '%s' "$line"
}

# Long-polls bring withdrawals only while they wait. So while a command runs, this asks for them, from the position behind the events that wait here.
look_for_withdrawal() {
  (
    asking=''
    trap 'kill $asking 2>/dev/null; exit' TERM
    from=$polled
    # Most commands have ended by then.
    sleep 1 &
    asking=$!
    wait "$asking"
    while [ -e "$state/running" ] && kill -0 $$ 2>/dev/null && authorize; do
      make_empty "$state/looked"
      http_proxy=${http_proxy:-${HTTP_PROXY:-}} curl -sSg --no-location -K - -o "$state/looked" -m $((poll_rest + answer_time)) \
        -H 'Accept: application/json' -H "Last-Event-ID: $from" "$feed&wait=$poll_rest" 2>/dev/null <<END &
$authorization
END
      asking=$!
      wait "$asking"
      messages_of "$state/looked" >"$state/look"
      if [ -s "$state/look" ]; then
        forward 1 <"$state/look" >/dev/null
        from=$(sed -n 's/^id: //p' "$state/look" | tail -n 1)
      else
        sleep 5 &
        asking=$!
        wait "$asking"
      fi
    done
  ) >/dev/null 2>&1 </dev/null &
  look_id=$!
}

# read_messages PART: reads an event stream from its standard input; if PART is `head`, the headers of the answer come first. A message counts when its
# blank line has come, and when the stream has begun as PERE's do.
read_messages() {
  id=$position event='' data='' asked='' problem='' kind='' part=$1
  [ -n "$part" ] && is_ready='' || is_ready=1
  while IFS= read -r line; do
    line=${line%"$carriage_return"}
    if [ "$part" = head ]; then
      case $line in
      '') case $status in 1??) ;; *) part=body ;; esac ;;
      HTTP/*)
        status=${line#* }
        status=${status%% *}
        kind='' location='' after=''
        ;;
      *:*)
        trim "${line#*:}"
        case $line in
        [Cc][Oo][Nn][Tt][Ee][Nn][Tt]-[Tt][Yy][Pp][Ee]:*) kind=${trimmed%%[; ]*} ;;
        [Ll][Oo][Cc][Aa][Tt][Ii][Oo][Nn]:*) location=$trimmed ;;
        [Rr][Ee][Tt][Rr][Yy]-[Aa][Ff][Tt][Ee][Rr]:*) after=${after:-$trimmed} ;;
        esac
        ;;
      esac
      continue
    fi
    if [ -n "$part" ] && [ "$status $kind" != '200 text/event-stream' ]; then
      problem=${problem:-$line}
      continue
    fi
    make_empty "$state/heard"
    case $line in
    '')
      case $event in
      pere.ready)
        case $data in '{'*'"channels":{'*) is_ready=1 failures=0 ;; esac
        ;;
      pere.gap) [ -z "$is_ready" ] || log "some events are no longer kept: $(printf '%s' "$data" | tr -cd '\40-\176' | cut -c 1-300)" ;;
      pere.shared) [ -z "$is_ready" ] || log "this device is connected from several addresses; does another machine use the same name? $(printf '%s' "$data" | tr -cd '\40-\176' | cut -c 1-300)" ;;
      pere.bye)
        case $data in '{"reason":"'*) [ -z "$asked" ] || retry=$asked ;; esac
        ;;
      pere.withdrawn)
        if [ -n "$is_ready" ]; then
          gone=${data#*'"withdrawn":"'}
          gone=${gone%%'"'*}
          ! is_position "$gone" || rm -f "$state/withdrawn.$gone"
          log "an event was withdrawn: $(printf '%s' "$data" | tr -cd '\40-\176' | cut -c 1-500)"
        fi
        ;;
      pere.*) ;;
      *)
        if [ -n "$data" ] && [ -z "$is_ready" ]; then
          kill $curl_id 2>/dev/null
          return
        fi
        make_empty "$state/busy"
        working=1
        [ -z "$data" ] || handle_event "$data"
        working=''
        rm -f "$state/busy"
        ;;
      esac
      if [ -n "$is_ready" ]; then
        [ -z "$asked" ] || retry=$asked
        [ "$id" = "$position" ] || keep_position "$id"
      fi
      [ -z "$ending" ] || quit "$ending"
      event='' data='' asked=''
      ;;
    id:*)
      line=${line#id:}
      line=${line# }
      ! is_position "$line" || id=$line
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
      case $line in '' | 0?* | *[!0-9]* | ????????*) ;; *) [ "$line" -gt $((asked_cut * 1000)) ] || asked=$(((line + 999) / 1000)) ;; esac
      ;;
    esac
  done
  # A problem document has no line end.
  [ "$part" != body ] || problem=${problem:-$line}
}

# Ends the curl of the event stream when nothing came for too long, or when the shell that reads it is gone.
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
      make_empty "$state/quiet"
      break
    fi
  done
  kill "$curl_id"
}

stream() {
  rm -f "$state/heard" "$state/quiet" "$state"/withdrawn.*
  polled=''
  authorize || return 0
  http_proxy=${http_proxy:-${HTTP_PROXY:-}} curl -sSNgi --suppress-connect-headers --no-location -K - \
    -H 'Accept: text/event-stream' -H "Last-Event-ID: $position" "${moved:-$feed}" >"$pipe" <<END &
$authorization
END
  curl_id=$!
  watch >/dev/null 2>&1 &
  watch_id=$!
  forward '' <"$pipe" >"$pipe.out" 2>/dev/null &
  forward_id=$!
  read_messages head <"$pipe.out"
  kill $curl_id $watch_id $forward_id 2>/dev/null
  wait $curl_id $watch_id $forward_id 2>/dev/null
  curl_id='' watch_id='' forward_id=''
  if [ -e "$state/quiet" ]; then
    log "nothing comes on the event stream; using long-polling"
    stream_again=$(($(now) + return_after * (1 << held_back)))
    [ "$held_back" -ge 4 ] || held_back=$((held_back + 1))
  else
    held_back=0
  fi
}

# messages_of FILE: the answer to a long-poll, {"events":[…],"last":"…"}, as an event stream: one message per event and withdrawal, then the position. awk splits it at its
# quotes: every other part is a string, except if the quote was escaped. Prints nothing if it is not a complete answer to a long-poll.
messages_of() {
  tr '\r\n\0' '   ' <"$1" | LC_ALL=C awk '{
    count = split($0, parts, "\""); inside = 0; depth = 0; key = ""; string = ""; text = ""; found = ""
    wrong = NR > 1 || index($0, "{\"events\":[") != 1
    for (i = 1; i <= count && !wrong; i++) {
      part = parts[i]
      if (inside) {
        string = string part
        if (depth > 2) text = text "\"" part
        if (match(part, /\\+$/) && RLENGTH % 2 == 1) { string = string "\""; continue }
        if (depth > 2) text = text "\""
        else if (depth == 2 && key == "events") wrong = 1
        else if (depth == 1 && key == "last") { last = string; key = "" }
        else if (depth == 1) key = string
        inside = 0
        continue
      }
      from = 1
      for (k = 1; k <= length(part); k++) {
        c = substr(part, k, 1)
        if (c == "{" || c == "[") { if (++depth == 3) { text = ""; from = k } }
        else if (c == "}" || c == "]") {
          if (depth-- == 3 && (key == "events" || key == "withdrawn")) {
            text = text substr(part, from, k - from + 1)
            if (index(text, "{\"id\":\"") != 1) wrong = 1
            found = found (key == "events" ? "" : "event: pere.withdrawn\n") "data: " text "\n\n"
            text = ""
          }
        }
        else if (depth == 2 && key == "events" && c != "," && c != " ") wrong = 1
      }
      if (depth > 2) text = text substr(part, from)
      inside = 1; string = ""
    }
    if (!wrong && depth == 0 && last ~ /^[A-Za-z0-9._:~-]+$/) printf "%sid: %s\n\n", found, last
  }'
}

poll() {
  authorize || return 1
  rest=$((stream_again - $(now)))
  [ "$rest" -le "$poll_rest" ] || rest=$poll_rest
  [ "$rest" -ge 1 ] || rest=1
  make_empty "$state/head"
  make_empty "$state/polled"
  http_proxy=${http_proxy:-${HTTP_PROXY:-}} curl -sSg --no-location -K - -D "$state/head" -o "$state/polled" -m $((rest + answer_time)) \
    -H 'Accept: application/json' -H "Last-Event-ID: $position" "${moved:-$feed&wait=$rest}" <<END &
$authorization
END
  # A signal ends `wait`, but not the wait for a program in the foreground.
  curl_id=$!
  wait "$curl_id"
  is_complete=$?
  curl_id=''
  status=$(status_in "$state/head")
  if [ "$is_complete" = 0 ] && [ "$status" = 200 ]; then
    messages_of "$state/polled" >"$state/messages"
    if [ -s "$state/messages" ]; then
      rm -f "$state"/withdrawn.*
      polled=$(sed -n 's/^id: //p' "$state/messages" | tail -n 1)
      ! grep -q '^event: pere.withdrawn' "$state/messages" || forward 1 <"$state/messages" >/dev/null
      read_messages '' <"$state/messages"
      failures=0
      return 0
    fi
  fi
  location=$(field_in "$state/head" location)
  after=$(field_in "$state/head" retry-after)
  problem=$(printable_start "$state/polled")
  return 1
}

feed="$url/feed/$channels?device=$device"
while :; do
  status='' location='' after='' problem='' at_least=0
  rest=$((stream_again - $(now)))
  # If only the wall clock is available and it was set back, that is no reason to wait.
  if [ "$rest" -gt 0 ] && [ "$rest" -le $((return_after * 16)) ]; then
    poll && {
      moved='' redirects=0
      continue
    }
  else
    stream
    [ ! -e "$state/quiet" ] || continue
    at_least=$retry
  fi
  is_moved "$status" "$location" && continue
  moved='' redirects=0
  if is_refusal "$status" "$problem"; then
    # The service does not accept the position, so it starts without one.
    if [ "$status" = 400 ] && [ -n "$position" ]; then
      log "the service refuses the position in $position_file, which is dropped: $(printf '%s' "$problem" | tr -cd '\40-\176' | cut -c 1-300)"
      keep_position ''
      continue
    fi
    log "refused: status $status: $(printf '%s' "$problem" | tr -cd '\40-\176' | cut -c 1-1000)"
    quit 1
  fi
  after=$(asked_seconds "$after")
  [ "$after" -le "$at_least" ] || at_least=$after
  failures=$((failures + 1))
  log "the feed ended ($(status_text "$status" "$location" "/feed/$channels")); reconnecting"
  back_off "$failures" "$at_least"
done
