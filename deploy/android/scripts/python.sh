#!/system/bin/sh
# This installation's Python, started by its own loader with its own C library: Android's is another.
here=${0%/*}/..
exec "$here/lib/ld-linux-aarch64.so.1" --library-path "$here/lib" --argv0 "$0" "$here/bin/python3.11" "$@"
