#!/bin/sh
# A device for PERE out of a POSIX shell, its usual tools, and curl.
#
#   sh pere.sh URL CHANNEL DEVICE COMMAND
#   sh pere.sh http://127.0.0.1:4567 orders till-7 './print-order'
#
# It follows the channel (several: comma separated) and runs the command for each event, one after the other: the publisher's data on its input,
# PERE_EVENT_ID, PERE_EVENT_CHANNEL and PERE_EVENT_TYPE in its environment. Its end with status 0 is `done`, and its output goes along: as JSON where all
# of it or its last line is JSON, else the last line as text. Any other end is `failed`, with the last line of its error output, or else of its output.
#
# An event is `failed` only when the command said so. It stays open, and the command is run again, when it could not be run (status 126 or 127), was
# ended by HUP, INT, QUIT, KILL, PIPE or TERM (status 128 and the signal's number), or did not end well while PERE_STATE can't be written to (its output
# goes there) or this program is told to end.
#
#   PERE_TOKEN, PERE_TOKEN_FILE   a token, or a file that holds the newest one and is read for each request
#   PERE_STATE                    a folder for what must survive, one process at a time; ./pere-CHANNEL-DEVICE
#   PERE_FIRST_BYTE, PERE_SILENCE, PERE_RETURN   patience in whole seconds, as below
#   HTTP_PROXY, HTTPS_PROXY, NO_PROXY            the proxy to use, and for which addresses not
#
# It ends with status 2 where one of these makes no sense, and with 1 where the service refuses.
#
# On a bad network it comes back where it broke off, after what the service asked for (`retry:`, `Retry-After`) and a random time that doubles with
# each failure. Where nothing comes on the event stream, something on the way holds it back: then it asks by long-poll, and tries again later.
#
# An event is worked on once. What became of it is in the file `handled` before its final receipt leaves, and the position moves on when the
# receipt was answered; so a shell that is killed in between gives the receipt again and does not run the command again. Only where it is killed
# while the command runs does it run it again, because nobody knows how far it was. The files are not synced: a power cut may take the last moment.
#
# There is no JSON in a shell. This works because of what PERE promises: an event is {"id":"…","channel":"…",…,"data":…}, and nothing before the data
# can hold a quote; an answer to one receipt is {"recorded":…,"duplicate":…,"rejected":[]}; a refusal begins with {"type":"urn:pere:. What looks
# different is not PERE's, and not believed. Nothing that comes from outside is used before its characters are known to be harmless.

# For the first byte of an event stream.
first_byte=${PERE_FIRST_BYTE:-5}
# For a sign of life on it: the service gives one each 15 s, and two may be late.
silence=${PERE_SILENCE:-40}
# On long-polls, before the event stream is tried again; doubled each time that it was in vain, four times at most.
return_after=${PERE_RETURN:-60}
# How long one long-poll rests (some proxies cut what is quiet for 30 s), and what an answer may take beyond.
poll_rest=25
answer_time=15
# The longest pause between two tries; the longest that is believed when the service, or what stands before it, asks for one; and what is left of it.
pause_max=30
asked_max=86400
asked_cut=3600
# Redirects that are followed for one request.
redirects_max=5
# Outcomes that are kept; twice as many are let grow.
handled_max=1000
# What the service takes of a detail, and how deep.
detail_bytes_max=4096
detail_depth_max=32

# Where nobody reads this any more, that is no reason to stop.
say() { (printf 'pere: %s\n' "$*" 2>/dev/null) >&2 || :; }

refuse() {
  say "$*"
  exit 2
}

# Names and patterns are bytes here; the command is given the locale that we were given.
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

# trim TEXT: without the blanks around it, in $trimmed.
trim() {
  trimmed=${1#"${1%%[!$blanks]*}"}
  trimmed=${trimmed%"${trimmed##*[!$blanks]}"}
}

[ $# -eq 4 ] || refuse "usage: sh pere.sh URL CHANNEL DEVICE COMMAND"
command -v curl >/dev/null 2>&1 || refuse "curl is needed, and is not on the PATH"
url=${1%/} channels=$2 device=$3 command=$4
case $url in *://*) ;; *) url=http://$url ;; esac
is_address "$url" || refuse "not an address of a service (http://host:port, no query): $1"
is_channels "$channels" || refuse "a channel's name is 1 to 128 of A-Z a-z 0-9 . _ : ~ - and begins with a letter or digit; several stand with commas between them: $2"
is_name "$device" || refuse "a device's name is 1 to 128 of A-Z a-z 0-9 . _ : ~ -, and not: $3"
trim "$command"
[ -n "$trimmed" ] || refuse "the command is empty"
for seconds in "$first_byte" "$silence" "$return_after"; do
  is_seconds "$seconds" || refuse "PERE_FIRST_BYTE, PERE_SILENCE and PERE_RETURN are whole seconds from 1 to $asked_max, and not: $seconds"
done
token_file=${PERE_TOKEN_FILE:-}
trim "${PERE_TOKEN:-}"
token=$trimmed
[ -z "$token" ] || is_token "$token" || refuse "PERE_TOKEN is not a JWT: it holds other characters than A-Z a-z 0-9 . _ -"
scheme=${url%%://*}
origin=$scheme://${url#*://}
origin=$scheme://$(printf '%s' "${origin#*://}" | sed 's|/.*||')

state=${PERE_STATE:-./pere-$channels-$device}
case $state in /*) ;; *) state=./$state ;; esac
umask 077
mkdir -p "$state" 2>/dev/null
[ -d "$state" ] && [ -w "$state" ] || refuse "PERE_STATE must be a folder that can be written to, and not: $state"
for kept in handled position; do
  [ ! -e "$state/$kept" ] || [ -f "$state/$kept" ] || refuse "$state/$kept must be a regular file"
done
# A link is followed, so that it is still one when the file is written anew.
handled=$(readlink -f "$state/handled" 2>/dev/null) || handled=$state/handled
place=$(readlink -f "$state/position" 2>/dev/null) || place=$state/position
pipe=$state/pipe.$$
rm -f "$state"/pipe.* "$state/heard" "$state/quiet" "$state/busy"
mkfifo "$pipe" || exit 1
touch "$handled" "$place" || exit 1
# A last line that was not written to its end is no outcome.
if [ -n "$(tail -c 1 "$handled" | tr '\0' ' ')" ]; then
  sed '$d' "$handled" >"$handled.new" && mv "$handled.new" "$handled" || refuse "$state can't be written to"
fi
position=$(tr '\0' ' ' <"$place")
is_position "$position" || position=''
curl_id='' watch_id='' nap_id='' retry=0 failures=0 stream_again=0 held_back=0 redirects=0 moved=''
# The last line of `handled` was not written to its end. When receipts are given again, where the service asked for a pause.
is_torn='' receipts_at=0
# Set while an event is in hand; and, when a signal came meanwhile, the status to end with.
working='' ending=''

leave() {
  trap - EXIT
  kill $curl_id $watch_id $nap_id 2>/dev/null
  rm -f "$pipe"
  exit "$1"
}
# The first signal lets an event in hand come to its end; the second doesn't.
told() {
  [ -n "$working" ] && [ -z "$ending" ] || leave "$1"
  ending=$1
}
trap 'leave $?' EXIT
trap 'told 129' HUP
trap 'told 130' INT
trap 'told 131' QUIT
trap 'told 143' TERM

# Sleeps, and wakes up for a signal.
nap() {
  sleep "$1" &
  nap_id=$!
  wait "$nap_id"
  nap_id=''
}

# Seconds on a clock that nobody sets, where there is one.
now() {
  if read -r up rest_of_line 2>/dev/null </proc/uptime; then
    printf '%s\n' "${up%%.*}"
  else
    date +%s
  fi
}

# clear FILE: makes it, and empty. A bare `:` ends the shell where that fails.
clear() { true >"$1"; } 2>/dev/null

# The newest token, as a line of curl's configuration: what comes through a pipe is in nobody's list of processes.
authorize() {
  if [ -n "$token_file" ]; then
    trim "$(tr '\0' ' ' 2>/dev/null <"$token_file")"
    token=$trimmed
    if ! is_token "$token"; then
      say "there is no token: $token_file can't be read, or what it holds is not a JWT"
      return 1
    fi
  fi
  authorization=''
  [ -z "$token" ] || authorization="header = \"Authorization: Bearer $token\""
}

# From the head of an answer in a file: its status, and a field's value.
status_in() { sed -n 's|^HTTP/[0-9.]* \([0-9]*\).*|\1|p' "$1" | tail -n 1; }
field_in() {
  awk -v name="$2" '/^HTTP\// { value = "" } {
    at = index($0, ":")
    if (value == "" && tolower(substr($0, 1, at - 1)) == name) { value = substr($0, at + 1); gsub(/^[ \t]+|[ \t\r]+$/, "", value) }
  } END { print value }' "$1"
}
# The beginning of a file, fit for a terminal.
start_of() { head -n 20 "$1" | cut -c 1-1000 | tr -cd '\40-\176' | cut -c 1-1000; }

# asked_seconds TEXT: what stands in Retry-After, as far as it makes sense.
asked_seconds() {
  case $1 in
  '' | *[!0-9]* | ??????*) echo 0 ;;
  *) if [ "$1" -gt "$asked_max" ]; then echo 0; elif [ "$1" -gt "$asked_cut" ]; then echo "$asked_cut"; else echo "$1"; fi ;;
  esac
}

# is_refusal STATUS BODY: PERE itself says no, and will say it again. Without a file that may hold another token tomorrow, 401 and 403 are final.
is_refusal() {
  case $2 in '{"type":"urn:pere:'*) ;; *) return 1 ;; esac
  case $1 in
  401 | 403) [ -z "$token_file" ] ;;
  408 | 425 | 429) return 1 ;;
  4??) ;;
  *) return 1 ;;
  esac
}

# is_moved STATUS LOCATION: whether the same is to be asked again, and at which address ($moved): by 307 and 308, at the same origin.
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

# What a status means, in words. $2: Location; $3: the path that was asked for
words_of() {
  case $1 in
  3??)
    place_to_use=$(printf '%s' "$2" | tr -cd '\41-\176' | cut -c 1-300)
    place_to_use=${place_to_use%%\?*}
    printf 'redirected with status %s: use the address %s' "$1" "${place_to_use%"$3"}"
    ;;
  *) printf 'status %s' "${1:-none}" ;;
  esac
}

# pause FAILURES AT_LEAST: sleeps a random time, of at most 1, 2, 4 … seconds, and at least what was asked for.
pause() {
  most=$pause_max
  [ "$1" -gt 5 ] || most=$((1 << ($1 - 1)))
  random=$(od -An -N2 -tu2 /dev/urandom)
  seconds=$((random % (most + 1)))
  [ "$seconds" -ge "$2" ] || seconds=$2
  nap "$seconds"
}

# ------------------------------------------------------------------------------------------------------------- receipts

# give CHANNEL EVENT STATUS DETAIL: until it is answered; `received` is tried once, since a final word will follow, and never delays the work.
give() {
  tries=0 receipt_after=0 receipt_status='' receipt_location='' redirects=0 moved=''
  head=$state/receipt-head answer=$state/answer
  rest=$((receipts_at - $(now)))
  if [ "$rest" -gt 0 ] && [ "$rest" -le "$asked_cut" ]; then
    [ "$3" != received ] || return
    [ -n "$ending" ] || nap "$rest"
  fi
  receipts_at=0
  while :; do
    if authorize && printf '{"event":"%s","status":"%s","detail":%s}' "$2" "$3" "$4" >"$state/receipt"; then
      clear "$head"
      clear "$answer"
      http_proxy=${http_proxy:-${HTTP_PROXY:-}} curl -sSg --no-location -K - -D "$head" -o "$answer" -m "$answer_time" \
        -H 'Content-Type: application/json' --data-binary "@$state/receipt" "${moved:-$url/feedback/$1?device=$device}" <<END
$authorization
END
      receipt_status=$(status_in "$head")
      receipt_location=$(field_in "$head" location)
      is_moved "$receipt_status" "$receipt_location" && continue
      receipt_after=$(asked_seconds "$(field_in "$head" retry-after)")
      body=$(start_of "$answer")
      if [ "$receipt_status" = 200 ]; then
        case $(sed -n 's/^{"recorded":\([01]\),"duplicate":\([01]\),"rejected":\[]\(,.*\)\{0,1\}}$/\1\2/p' "$answer") in 01 | 10) return ;; esac
      elif is_refusal "$receipt_status" "$body"; then
        case $receipt_status in
        401 | 403)
          say "refused: $body"
          leave 1
          ;;
        400 | 413 | 422)
          # Where it lists what it rejects, it must be this one.
          case $body in
          *'"rejected":[{"index":0,"event":"'"$2"'","reason":"'*) is_ours=1 ;;
          *'"rejected":'*) is_ours='' ;;
          *) is_ours=1 ;;
          esac
          if [ -n "$is_ours" ]; then
            say "$3 of $2 was rejected: $body"
            return
          fi
          ;;
        esac
      fi
    fi
    redirects=0 moved=''
    # What is told to end has one try; the receipt is given by whoever comes next.
    [ -z "$ending" ] || leave "$ending"
    if [ "$3" = received ]; then
      [ "$receipt_after" = 0 ] || receipts_at=$(($(now) + receipt_after))
      return
    fi
    tries=$((tries + 1))
    say "a receipt waits ($(words_of "$receipt_status" "$receipt_location" "/feedback/$1")); again"
    pause "$tries" "$receipt_after"
  done
}

# json_in FILE: what a command printed as JSON, in ASCII and on one line: all of it, or its last line; nothing, where neither is JSON. With `text`, the
# last line as a string, up to 500 characters. The bytes come as numbers, since programs differ in what they make of others.
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
      # What is cut off at its beginning is no line.
      if ((is_whole == 1 || start > first) && is_json(start, last)) print json
    }'
}

# Runs the command for the event at hand.
run() {
  case $locale in unset) unset LC_ALL ;; *) LC_ALL=$locale ;; esac
  PERE_EVENT_ID=$name PERE_EVENT_CHANNEL=$channel PERE_EVENT_TYPE=$type exec sh -c "$command"
}

# outcome_of VALUE: runs the command until it is known what became of the event ($outcome). What it can't be run for is not the event's fault.
outcome_of() {
  tries=0
  complained=$state/complained
  while :; do
    [ -z "$ending" ] || leave "$ending"
    why='' detail=''
    if printf '%s' "$1" >"$state/data" && clear "$state/said" && clear "$complained"; then
      (run) <"$state/data" >"$state/said" 2>"$complained"
      code=$?
      case $code in
      0)
        detail=$(json_in "$state/said")
        [ -n "$detail" ] || detail=$(json_in "$state/said" text)
        outcome="$name done ${detail:-null}"
        return
        ;;
      126 | 127) why="the command could not be run: $(start_of "$complained")" ;;
      129 | 130 | 131 | 137 | 141 | 143) why="the command was ended by signal $((code - 128))" ;;
      *)
        [ -z "$ending" ] || leave "$ending"
        # Its output goes to this disk; a full one is not the work's fault.
        if dd if=/dev/zero of="$state/probe" bs=4096 count=1 2>/dev/null; then
          detail=$(json_in "$complained" text)
          [ -n "$detail" ] || detail=$(json_in "$state/said" text)
          outcome="$name failed ${detail:-\"exit status $code\"}"
          return
        fi
        why="the command ended with status $code, but $state can't be written to"
        ;;
      esac
    else
      why="$state can't be written to"
    fi
    tries=$((tries + 1))
    say "$name stays open: $why"
    [ -z "$ending" ] || leave "$ending"
    pause "$tries" 1
  done
}

# work EVENT: an event's JSON text.
work() {
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
  case $1 in '{"id":"'*'","channel":"'*',"data":'*'}') ;; *) name='' ;; esac
  if ! is_position "$name" || ! is_name "$channel" || ! is_channels "$channel"; then
    say "something came that is no event: $(printf '%s' "$1" | tr -cd '\40-\176' | cut -c 1-100)"
    return
  fi
  outcome=$(grep "^$name \(done\|failed\) " "$handled" | tail -n 1)
  if [ -z "$outcome" ]; then
    give "$channel" "$name" received null
    outcome_of "${value%'}'}"
    if printf '%s%s\n' "$is_torn" "$outcome" >>"$handled"; then
      is_torn=''
    else
      say "what became of $name could not be kept"
      is_torn=$newline
    fi
    if [ "$(wc -l <"$handled")" -gt $((2 * handled_max)) ]; then
      tail -n "$handled_max" "$handled" >"$handled.new" && mv "$handled.new" "$handled"
    fi
  fi
  outcome=${outcome#* }
  give "$channel" "$name" "${outcome%% *}" "${outcome#* }"
}

# ---------------------------------------------------------------------------------------------------------------- feeds

keep_position() {
  position=$1
  printf '%s\n' "$position" >"$place.new" && mv "$place.new" "$place"
}

# read_messages HEAD: reads an event stream on its input, to its end; with HEAD, the head of the answer stands before it. A message counts when its
# blank line has come, and when the stream has said that it is PERE's.
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
    clear "$state/heard"
    case $line in
    '')
      case $event in
      pere.ready)
        case $data in '{'*'"channels":{'*) is_ready=1 failures=0 ;; esac
        ;;
      pere.gap) [ -z "$is_ready" ] || say "events are no longer kept: $(printf '%s' "$data" | tr -cd '\40-\176' | cut -c 1-300)" ;;
      pere.shared) [ -z "$is_ready" ] || say "this device is open at several addresses; is its name another machine's as well? $(printf '%s' "$data" | tr -cd '\40-\176' | cut -c 1-300)" ;;
      pere.bye)
        case $data in '{"reason":"'*) [ -z "$asked" ] || retry=$asked ;; esac
        ;;
      pere.*) ;;
      *)
        if [ -n "$data" ] && [ -z "$is_ready" ]; then
          kill $curl_id 2>/dev/null
          return
        fi
        clear "$state/busy"
        working=1
        [ -z "$data" ] || work "$data"
        working=''
        rm -f "$state/busy"
        ;;
      esac
      if [ -n "$is_ready" ]; then
        [ -z "$asked" ] || retry=$asked
        [ "$id" = "$position" ] || keep_position "$id"
      fi
      [ -z "$ending" ] || leave "$ending"
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
  # A problem document has no line's end.
  [ "$part" != body ] || problem=${problem:-$line}
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
      clear "$state/quiet"
      break
    fi
  done
  kill "$curl_id"
}

stream() {
  rm -f "$state/heard" "$state/quiet"
  authorize || return 0
  http_proxy=${http_proxy:-${HTTP_PROXY:-}} curl -sSNgi --suppress-connect-headers --no-location -K - \
    -H 'Accept: text/event-stream' -H "Last-Event-ID: $position" "${moved:-$feed}" >"$pipe" <<END &
$authorization
END
  curl_id=$!
  watch >/dev/null 2>&1 &
  watch_id=$!
  read_messages head <"$pipe"
  kill $curl_id $watch_id 2>/dev/null
  wait $curl_id $watch_id 2>/dev/null
  curl_id='' watch_id=''
  if [ -e "$state/quiet" ]; then
    say "nothing comes on the event stream, on with long-polls"
    stream_again=$(($(now) + return_after * (1 << held_back)))
    [ "$held_back" -ge 4 ] || held_back=$((held_back + 1))
  else
    held_back=0
  fi
}

# The answer to a long-poll, {"events":[…],"last":"…"}, as an event stream: an event a message, and last the position. Split at its quotes: every
# other part is a string, save where the quote was escaped. Nothing, where it is not such an answer to its end.
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
          if (depth-- == 3 && key == "events") {
            text = text substr(part, from, k - from + 1)
            if (index(text, "{\"id\":\"") != 1) wrong = 1
            found = found "data: " text "\n\n"
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
  clear "$state/head"
  clear "$state/polled"
  http_proxy=${http_proxy:-${HTTP_PROXY:-}} curl -sSg --no-location -K - -D "$state/head" -o "$state/polled" -m $((rest + answer_time)) \
    -H 'Accept: application/json' -H "Last-Event-ID: $position" "${moved:-$feed&wait=$rest}" <<END &
$authorization
END
  # A signal ends this wait, and would not end that for a program.
  curl_id=$!
  wait "$curl_id"
  is_complete=$?
  curl_id=''
  status=$(status_in "$state/head")
  if [ "$is_complete" = 0 ] && [ "$status" = 200 ]; then
    messages_of "$state/polled" >"$state/messages"
    if [ -s "$state/messages" ]; then
      read_messages '' <"$state/messages"
      failures=0
      return 0
    fi
  fi
  location=$(field_in "$state/head" location)
  after=$(field_in "$state/head" retry-after)
  problem=$(start_of "$state/polled")
  return 1
}

feed="$url/feed/$channels?device=$device"
while :; do
  status='' location='' after='' problem='' at_least=0
  rest=$((stream_again - $(now)))
  # Where only the wall clock is to be had, and it was set back, that is no reason to wait.
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
    # A position that the service doesn't understand is none.
    if [ "$status" = 400 ] && [ -n "$position" ]; then
      say "the position in $place is forgotten: $(printf '%s' "$problem" | tr -cd '\40-\176' | cut -c 1-300)"
      keep_position ''
      continue
    fi
    say "refused: status $status: $(printf '%s' "$problem" | tr -cd '\40-\176' | cut -c 1-1000)"
    leave 1
  fi
  after=$(asked_seconds "$after")
  [ "$after" -le "$at_least" ] || at_least=$after
  failures=$((failures + 1))
  say "the feed ended ($(words_of "$status" "$location" "/feed/$channels")); coming back"
  pause "$failures" "$at_least"
done
