"""Runs inside a measured Debian, as root, with nothing but the standard library: many clients, and hostile ones.

    flood.py idle COUNT             that many strangers connect and say nothing
    flood.py junk COUNT             that many send junk, or HTTP; as many more send a letter of a command now and then
    flood.py send SESSIONS COUNT    so many messages of 4 KB in each of so many sessions, for alice

Each client has an address of its own (of NETWORK, which the loopback interface has) and goes to TARGET. Prints one JSON
object when all are there (send: when all is over) and stays until its standard input ends.
"""

import asyncio
import json
import os
import sys
import time

NETWORK, TARGET = "198.18.0.0/15", "198.18.0.1"
HOST = "host.example.test"
DRIP, LONG = 0.5, 60.0  # seconds
MESSAGE = b"Subject: flood\r\n\r\n" + (b"x" * 70 + b"\r\n") * 55 + b".\r\n"
HTTP = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"

Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(number: int) -> Peer:
    address = f"198.18.{1 + number // 250}.{1 + number % 250}"
    return await asyncio.open_connection(TARGET, 25, local_addr=(address, 0))


async def reply(reader: asyncio.StreamReader) -> str:
    """The last line of the next reply, "" at the end."""
    while True:
        line = (await asyncio.wait_for(reader.readline(), LONG)).decode("ascii", "replace")
        if line[3:4] != "-":
            return line


async def idle(count: int) -> dict[str, object]:
    peers = await asyncio.gather(*(connect(number) for number in range(count)))
    greetings = await asyncio.gather(*(reply(reader) for reader, _ in peers))
    KEPT.extend(peers)
    return {"let_in": sum(line.startswith("220 ") for line in greetings)}


async def junk(count: int) -> dict[str, object]:
    async def rave(number: int) -> None:
        try:
            _, writer = await connect(number)
            writer.write(HTTP if number % 2 else os.urandom(20_000))
            KEPT.append((_, writer))
            await writer.drain()
        except OSError:
            pass  # it has been shown out

    async def drip(number: int) -> None:
        try:
            while True:
                reader, writer = await connect(number)
                while not reader.at_eof():
                    writer.write(b"N")
                    try:
                        await asyncio.wait_for(reader.read(100), DRIP)
                    except TimeoutError:
                        continue
                writer.close()
        except OSError:
            pass

    await asyncio.gather(*(rave(number) for number in range(count)))
    TASKS.extend(asyncio.create_task(drip(count + number)) for number in range(count))
    return {}


async def send(sessions: int, count: int) -> dict[str, object]:
    async def one(number: int) -> int:
        reader, writer = await connect(number)
        taken = 0
        if (await reply(reader)).startswith("220 "):
            writer.write(b"EHLO client.example\r\n")
            await reply(reader)
            for _ in range(count):
                writer.write(f"MAIL FROM:<>\r\nRCPT TO:<alice@{HOST}>\r\nDATA\r\n".encode())
                if not [await reply(reader) for _ in range(3)][2].startswith("354 "):
                    break
                writer.write(MESSAGE)
                taken += (await reply(reader)).startswith("250 ")
        writer.close()
        return taken

    begin = time.monotonic()
    taken = sum(await asyncio.gather(*(one(number) for number in range(sessions))))
    return {"taken": taken, "seconds": time.monotonic() - begin}


KEPT: list[Peer] = []
TASKS: list["asyncio.Task[None]"] = []


async def main(kind: str, *numbers: int) -> None:
    print(json.dumps(await {"idle": idle, "junk": junk, "send": send}[kind](*numbers)), flush=True)  # type: ignore[operator]
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
