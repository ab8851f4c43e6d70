"""A minimal X2Go session broker: for each login the fleet's best server, and the user's own session where there is one.

python broker.py REDIS_URL PORT; then: x2goclient --broker-url=http://127.0.0.1:PORT/plain/
It answers on loopback and believes every password: put TLS before it, and your directory into ``authenticated``.
"""

import asyncio
import sys
from urllib.parse import parse_qs

from x2gofleet import AsyncFleetCache, FleetError, NoServerAvailable


def authenticated(username: str, password: str) -> bool:
    return bool(username) and username.isprintable()


async def list_profiles(cache: AsyncFleetCache, username: str) -> str:
    found = [f"[{name}]\nname={name}\nuser={username}\n" for name in await cache.profiles()]
    return "\n".join(["START_USER_SESSIONS\n", *found, "END_USER_SESSIONS\n"])


async def select_session(cache: AsyncFleetCache, profile: str, username: str) -> str:
    placement = await cache.place(profile, username)
    if placement is None:
        raise NoServerAvailable(profile, {"the fleet": "not cached"})
    answer = f"SERVER:{placement.hostname}:22\n"
    return answer + (f"SESSION_INFO:{placement.session.to_row()}\n" if placement.session else "")


async def answer(cache: AsyncFleetCache, form: dict[str, str]) -> tuple[str, str]:
    username = form.get("user", "")
    if not authenticated(username, form.get("password", "")):
        return "401 Unauthorized", ""
    try:
        if form.get("task") == "selectsession":
            # Not as form["login"] says: whoever is named there has sessions with cookies.
            text = await select_session(cache, form.get("sid", ""), username)
        else:
            text = await list_profiles(cache, username)
    except (FleetError, ValueError) as exc:
        return "503 Service Unavailable", f"{exc}\n"
    return "200 OK", f"Access granted\n{text}"


async def serve(url: str, port: int) -> None:
    async with AsyncFleetCache.from_url(url, mirror=True) as cache:

        async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                async with asyncio.timeout(10):
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                    length = int(head.partition("content-length:")[2].partition("\r\n")[0] or 0)
                    form = parse_qs((await reader.readexactly(min(length, 65536))).decode(), keep_blank_values=True)
                    status, text = await answer(cache, {name: values[-1] for name, values in form.items()})
                    body = text.encode("utf-8", "surrogateescape")
                    writer.write(f"HTTP/1.0 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
                    await writer.drain()
            except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(client, "127.0.0.1", port)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/plain/", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
