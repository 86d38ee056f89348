"""An nginx of its own on loopback, for tests and benchmarks that compare with it or stand behind it."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcaptor.deploy.programs import find


@contextmanager
def nginx(folder: Path, port: int, server: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run nginx with TLS on a loopback port until the block ends; gives its process.

    `folder` takes its files, and it or the one above has `server.pem` and `server.key`; `server`: what stands in its
    `server` block.
    """
    program = find("nginx")
    assert program is not None
    configuration, keys = folder / "nginx.conf", folder if (folder / "server.pem").exists() else folder.parent
    places = "".join(
        f"{kind}_temp_path {folder / 'temporary'};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    own = f"user {pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name};" if os.getuid() == 0 else ""
    configuration.write_text(f"""
{own}
daemon off;
worker_processes 1;
pid {folder / "nginx.pid"};
error_log {folder / "nginx.log"} warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  {places}
  server {{
    listen 127.0.0.1:{port} ssl http2;
    ssl_certificate {keys / "server.pem"};
    ssl_certificate_key {keys / "server.key"};
    {server}
  }}
}}
""")
    with subprocess.Popen([program, "-c", configuration, "-p", folder, "-e", folder / "nginx.log"]) as process:
        try:
            _wait(process, port)
            yield process
        finally:
            process.terminate()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("nginx ended before it listened")
