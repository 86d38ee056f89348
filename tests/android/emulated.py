"""A device without a phone: adb's daemon over an arm64 userland of mksh and toybox, as Android has.

All runs in namespaces of its own: of users, so that it needs no right of this machine and has its own table of foreign
programs in the kernel; of networks, as the daemon listens on every interface; of processes, which end with it. Sockets
of the file system lead in and out: the cable, which a test may pull.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fedcaptor.deploy.android.apt import Archive

CACHE = Path(__file__).parents[2] / ".tools" / "android"
_DAEMON = [
    "adbd",
    "android-libbase",
    "android-libboringssl",
    "android-libcutils",
    "android-liblog",
    "libbrotli1",
    "libc6",
    "libgcc-s1",
    "liblz4-1",
    "libprotobuf32t64",
    "libstdc++6",
    "libsystemd0",
    "libzstd1",
    "libxxhash0",
    "zlib1g",
    "libcap2",
    "qemu-user",
]
_USERLAND = ["libc6", "libcrypt1", "mksh", "toybox"]
_CPU = "cortex-a76"
"""Without SVE and SME, as most phones: emulated, their kernels are many times as slow."""
_BOOT_SECONDS = 60.0
_MAGIC = r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
_MASK = r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
# The table holds only while it is mounted. F: the emulator is opened now, so that it is found inside of the root.
_BOOT = rf"""
set -e
ip link set lo up
mount -t binfmt_misc binfmt_misc "$ROOT/binfmt"
printf '%s' ':arm64:M::{_MAGIC}:{_MASK}:'"$QEMU"':PF' > "$ROOT/binfmt/register"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount $DATA "$ROOT/data"
mkdir -p "$ROOT/data/local/tmp"
"$PYTHON" "$RELAY" &
cd /
exec env -i PATH=/system/bin HOME=/ ADBD_PORT="$PORT" QEMU_CPU={_CPU} \
  "$CHROOT" "$ROOT" /daemon/ld-linux-x86-64.so.2 --library-path /daemon /daemon/adbd
"""


def prepare() -> Path:
    """Unpack Debian's daemon, emulator and userland into the cache, once, and return it."""
    if not (CACHE / "ready").is_file():
        expired = ("Acquire::Check-Valid-Until=false",)  # a mirror's snapshot of sid is good enough here
        for name, suite, architecture, packages in (
            ("daemon", "sid", "amd64", _DAEMON),
            ("userland", "bookworm", "arm64", _USERLAND),
        ):
            shutil.rmtree(CACHE / name, ignore_errors=True)
            Archive(CACHE / f"apt-{name}", suite, architecture, expired).unpack(packages, CACHE / name)
        (CACHE / "ready").touch()
    return CACHE


def make_root(root: Path) -> None:
    """Lay out a device: `/system/bin` of toybox, mksh as its shell, no `/tmp`, no resolver, a battery that charges."""
    cache = prepare()
    for folder in ("system/bin", "system/etc", "lib", "data/local/tmp", "proc", "dev", "binfmt", "daemon"):
        (root / folder).mkdir(parents=True)
    arm64, amd64 = cache / "userland", cache / "daemon" / "usr" / "lib"
    shutil.copy(arm64 / "bin" / "toybox", root / "system" / "bin")
    shutil.copy(arm64 / "bin" / "mksh", root / "system" / "bin" / "sh")
    for name in ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libcrypt.so.1"):
        shutil.copy(arm64 / "lib" / "aarch64-linux-gnu" / name, root / "lib")
    emulator = cache / "daemon" / "usr" / "bin" / "qemu-aarch64"
    listed = subprocess.run(
        [emulator, "-L", root, root / "system/bin/toybox"], capture_output=True, text=True, check=True
    )
    for command in listed.stdout.split():
        (root / "system" / "bin" / command).symlink_to("toybox")
    (root / "system/bin/awk").unlink(missing_ok=True)
    (root / "bin").symlink_to("system/bin")
    (root / "etc").symlink_to("system/etc")
    for path in [*amd64.glob("x86_64-linux-gnu/*.so*"), *amd64.glob("x86_64-linux-gnu/android/*.so*")]:
        shutil.copy(path, root / "daemon" / path.name)
    shutil.copy(amd64 / "android-sdk/platform-tools/adbd", root / "daemon")
    cores = root / "sys" / "devices" / "system" / "cpu"
    cores.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cores / name).write_text(f"0-{(os.cpu_count() or 1) - 1}\n")
    battery = root / "sys" / "class" / "power_supply" / "battery"
    battery.mkdir(parents=True)
    for name, value in {"type": "Battery", "status": "Charging", "capacity": "80", "temp": "285"}.items():
        (battery / name).write_text(f"{value}\n")


@dataclass
class Emulated:
    """A running device. `serial` is adb's name for it; `plug` and `unplug` are its cable."""

    root: Path
    port: int
    _daemon: subprocess.Popen[bytes]
    _listener: socket.socket
    _cables: list[socket.socket] = field(default_factory=list)
    plugged: bool = True
    cut_after: int | None = None
    """Pull the cable once so many bytes went to the device."""

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def battery(self) -> Path:
        return self.root / "sys" / "class" / "power_supply" / "battery"

    def unplug(self) -> None:
        self.plugged = False
        for cable in self._cables:
            with contextlib.suppress(OSError):
                cable.shutdown(socket.SHUT_RDWR)
        self._cables.clear()

    def plug(self) -> None:
        self.plugged, self.cut_after = True, None

    def accept(self) -> None:
        """Carry adb's connections to the daemon, until the listener is closed."""
        while True:
            try:
                outer, _ = self._listener.accept()
            except OSError:
                return
            if not self.plugged:
                outer.close()
                continue
            inner = socket.socket(socket.AF_UNIX)
            inner.connect(str(self.root / "cable"))
            self._cables += [outer, inner]
            threading.Thread(target=self._carry, args=(outer, inner, True), daemon=True).start()
            threading.Thread(target=self._carry, args=(inner, outer, False), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, inward: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(1 << 16):
                if inward and self.cut_after is not None:
                    self.cut_after -= len(content)
                    if self.cut_after < 0:
                        self.unplug()
                        return
                target.sendall(content)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _await(daemon: subprocess.Popen[bytes], cable: Path, log: Path) -> None:
    """Wait for the inner end of the cable; fails with what the daemon said where it ended."""
    end = time.monotonic() + _BOOT_SECONDS
    while not cable.exists():
        if daemon.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the device did not boot, it needs what docs/android.md says: {log.read_text()}")
        time.sleep(0.1)


@contextlib.contextmanager
def device(root: Path, port: int, size: str = "") -> Iterator[Emulated]:
    """Run a device on a root that `make_root` laid out; `port` is the daemon's, in the device's own network.

    `size`: of its storage, such as `300m`, which is then empty; else it is the folder `data` of the root.
    """
    qemu = prepare() / "daemon" / "usr" / "bin" / "qemu-aarch64"
    cable = root / "cable"
    cable.unlink(missing_ok=True)
    held = {"ROOT": root, "QEMU": qemu, "PYTHON": sys.executable, "RELAY": Path(__file__).with_name("relay.py")}
    more = {"PORT": port, "CABLE": cable, "CHROOT": shutil.which("chroot") or "/usr/sbin/chroot"}
    more["DATA"] = f"-t tmpfs -o size={size} tmpfs" if size else f"--bind {root}/data"
    environment = os.environ | {name: str(value) for name, value in {**held, **more}.items()}
    spaces = ["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child"]
    boot = ["setpriv", "--pdeathsig", "KILL", "unshare", *spaces, "sh", "-c", _BOOT]  # ends with the tests, however
    with (root / "daemon.log").open("wb") as log, socket.create_server(("127.0.0.1", 0)) as listener:
        daemon = subprocess.Popen(boot, env=environment, stdout=log, stderr=log)
        made = Emulated(root, port, daemon, listener)
        accepting = threading.Thread(target=made.accept, daemon=True)
        accepting.start()
        try:
            _await(daemon, cable, root / "daemon.log")
            yield made
        finally:
            made.unplug()
            daemon.kill()  # `unshare` ignores SIGTERM; its child ends with it
            daemon.wait()
            listener.shutdown(socket.SHUT_RDWR)
