# condition [charging] [level=PERCENT] [temperature=CELSIUS]: succeeds while the battery is as asked, and says why if not.
# Reads /sys/class/power_supply, and `dumpsys battery` where SELinux hides that from the shell. A phone whose battery
# cannot be read does not take part: nobody would notice that it is drained.
sys=${FEDCAPTOR_SYS:-/sys}

battery() { # set status, level (percent) and tenths (of a degree Celsius), each empty where it is not known
  status= level= tenths=
  for supply in "$sys"/class/power_supply/*; do
    [ "$(cat "$supply/type" 2>/dev/null)" = Battery ] || continue
    status=$(cat "$supply/status" 2>/dev/null)
    level=$(cat "$supply/capacity" 2>/dev/null)
    tenths=$(cat "$supply/temp" 2>/dev/null)
    [ -z "$level" ] || return 0
  done
  report=$(dumpsys battery 2>/dev/null) || return 0
  field() { echo "$report" | sed -n "s/^ *$1: *//p" | head -n 1; }
  level=$(field level)
  tenths=$(field temperature)
  case $(field status) in 2) status=Charging ;; 5) status=Full ;; ?*) status=Discharging ;; esac
}

refuse() { echo "$1" >&2; exit 1; }

battery
for wanted in "$@"; do
  bound=${wanted#*=}
  case $wanted in
    charging)
      case $status in Charging | Full | 'Not charging') ;; *) refuse "battery is ${status:-unknown}, not charging" ;; esac ;;
    level=*)
      [ -n "$level" ] || refuse "the battery's level cannot be read"
      [ "$level" -ge "$bound" ] || refuse "battery is at $level %, below $bound %" ;;
    temperature=*)
      [ -n "$tenths" ] || refuse "the battery's temperature cannot be read"
      [ "$tenths" -le $((bound * 10)) ] || refuse "battery has $((tenths / 10)) °C, above $bound °C" ;;
    *) refuse "no condition: $wanted" ;;
  esac
done
exit 0
