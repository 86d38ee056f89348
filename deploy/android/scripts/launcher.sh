#!/system/bin/sh
# Made by `fedcaptor devices push`: it names the layers of the installation, and runs its scripts and its Python.
umask 077
home=@home@
scripts=$home/layers/@program@/scripts
python=$home/layers/@runtime@/bin/python
export PYTHONHOME="$home/layers/@runtime@" PYTHONPATH="$home/layers/@program@:$home/layers/@libraries@"
export PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONUTF8=1
# Android has no /tmp, and the shell's user no home.
export HOME="$home/phone" TMPDIR="$home/tmp" FLWR_HOME="$home/phone/flwr"
mkdir -p "$HOME" "$TMPDIR" && cd "$HOME" || exit 1
case $1 in
  service | condition | probe) script=$1; shift; . "$scripts/$script.sh" ;;
  python) shift; exec "$python" "$@" ;;
  *) exec "$python" -m fedcaptor.cli.main "$@" ;;
esac
