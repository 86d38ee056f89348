"""The inner end of an emulated device's cable: carry connections of a socket in the file system to adb's daemon.

Runs inside the device's network, where nothing else can reach the daemon; `CABLE` and `PORT` say from where to where.
"""

from __future__ import annotations

import asyncio
import os


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while content := await reader.read(1 << 16):
            writer.write(content)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def _connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", int(os.environ["PORT"]))
    except ConnectionError:
        writer.close()
        return
    await asyncio.gather(_carry(reader, inner_writer), _carry(inner_reader, writer))


async def _main() -> None:
    async with await asyncio.start_unix_server(_connect, os.environ["CABLE"]) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
