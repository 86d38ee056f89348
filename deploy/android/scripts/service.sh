# service start | stop | status: `fedcaptor phone run`, kept running by a small loop. Sourced by the launcher.
# `pause` and `resume` are for an update: what ran runs again, also if the cable was cut in between.
run=$home/run
pid_file=$run/loop.pid
log=$run/service.log
wanted=$run/wanted

running() { # the loop's process, if it lives; a number that Android gave to another program since is not it
  pid=$(cat "$pid_file" 2>/dev/null) && [ -n "$pid" ] && grep -q supervise "/proc/$pid/cmdline" 2>/dev/null
}

supervise() { # start the client again whenever it ends: soon at first, later every five minutes
  echo $$ > "$pid_file.new" && mv "$pid_file.new" "$pid_file"
  child=
  trap 'trap "" TERM INT HUP; [ -z "$child" ] || { kill "$child"; wait "$child"; } 2>/dev/null; rm -f "$pid_file"; exit 0' TERM INT
  trap '' HUP
  pause=1
  while :; do
    begin=$(date +%s)
    "$python" -m fedcaptor.cli.main phone run --config "$home/phone/phone.toml" &
    child=$!
    wait "$child"
    code=$?
    child=
    [ $(($(date +%s) - begin)) -lt 60 ] || pause=1
    echo "$(date '+%Y-%m-%d %H:%M:%S') the client ended with $code; again in $pause s"
    echo "$code" >> "$run/restarts"
    sleep "$pause" & child=$!
    wait "$child"
    child=
    pause=$((pause * 2))
    [ "$pause" -le 300 ] || pause=300
  done
}

start() {
  if running; then echo "runs already as $pid"; return; fi
  [ -f "$home/phone/phone.toml" ] || { echo "no phone.toml: run fedcaptor devices push DIR" >&2; exit 3; }
  [ ! -f "$log" ] || mv "$log" "$log.1"
  : > "$run/restarts"
  : > "$wanted"
  setsid sh "$home/fedcaptor" service supervise < /dev/null > "$log" 2>&1 &
  tries=50
  until running; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo "the service did not start:" >&2; tail -n 5 "$log" >&2; exit 1; }
    sleep 0.1
  done
  echo "started as $pid"
}

stop() {
  running || { rm -f "$pid_file"; echo "does not run"; return; }
  kill "$pid"
  tries=150
  while running; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || { echo "process $pid does not end" >&2; exit 1; }
    sleep 0.1
  done
  echo "stopped"
}

mkdir -p "$run"
case $1 in
  start) start ;;
  stop) rm -f "$wanted"; stop ;;
  pause) stop ;;
  resume) [ ! -f "$wanted" ] || start ;;
  status)
    if running; then echo "running=$pid"; else echo "running="; fi
    echo "restarts=$(cat "$run/restarts" 2>/dev/null | wc -l)"
    ;;
  supervise) supervise ;;
  *) echo "service start | stop | status" >&2; exit 2 ;;
esac
