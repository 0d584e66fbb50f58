"""What hypeman-python.test.ts has the published Python client do: one story, named by the first argument, against the daemon that
HYPEMAN_BASE_URL and HYPEMAN_API_KEY name. Whatever is not as it should be raises."""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import hypeman
from hypeman import AsyncHypeman, Hypeman
from hypeman.lib.cp import CopyProtocolError, cp_from_instance, cp_from_instance_async, cp_to_instance, cp_to_instance_async
from hypeman.lib.exec import exec, exec_async

IMAGE = "docker.io/library/sleepy:1"

client = Hypeman()


def same(got, wanted):
    assert got == wanted, f"{got!r}, not {wanted!r}"


def raises(kind, work):
    try:
        work()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


def running(name, **more):
    made = client.instances.create(name=name, image=IMAGE, size="512MB", **more)
    waited = client.instances.wait(made.id, state="Running", api_timeout="60s")
    same((waited.state, waited.timed_out), ("Running", False))
    return client.instances.get(made.id)


def life():
    same(client.health.check().status, "ok")
    assert "exec" in client.capabilities.get().features
    made = running("life", tags={"team": "py"}, env={"A": "b"})
    same([one.id for one in client.instances.list(tags={"team": "py"})], [made.id])
    assert made.id not in [one.id for one in client.instances.list(state="Stopped")]
    same((client.instances.get("life").id, made.env, made.size), (made.id, {"A": "b"}, "512MB"))
    same(raises(hypeman.ConflictError, lambda: client.instances.create(name="life", image=IMAGE)).body["code"], "name_conflict")
    same(client.instances.standby("life").state, "Standby")
    assert client.instances.restore("life").state in ("Initializing", "Running")
    client.instances.wait("life", state="Running", api_timeout="60s")
    same(client.instances.stop("life").state, "Stopped")
    assert client.instances.start("life").state in ("Initializing", "Running")
    client.instances.wait("life", state="Running", api_timeout="60s")
    client.instances.delete("life", graceful_shutdown=False)
    raises(hypeman.NotFoundError, lambda: client.instances.get("life"))


def commands():
    running("py")
    done = exec(client, "py", ["/bin/echo", "hi"])
    same((done.output, done.exit_code), (b"hi\n", 0))
    same(exec(client, "py", ["exit", "3"]).exit_code, 3)
    same(exec(client, "py", ["echo", "there"], cwd="/", env={"A": "b"}, wait_for_agent=5, tty=True, rows=24, cols=80, resize=[(40, 120)]).exit_code, 0)
    absent = exec(client, "py", ["absent"])
    assert absent.exit_code == 127 and absent.output.startswith(b"Error: "), absent
    same(exec(client, "py", ["sleep", "600"], timeout=1).exit_code, 124)
    same(asyncio.run(exec_async(AsyncHypeman(), "py", ["echo", "hi"])).output, b"hi\n")


def stdin():
    running("fed")
    same(exec(client, "fed", ["head", "-c", "5"], stdin=b"hello").output, b"hello")
    # All of it is one frame.
    large = bytes(range(256)) * 12_000
    same(exec(client, "fed", ["head", "-c", str(len(large))], stdin=large).output, large)
    pieces = (bytes([n]) * 40_000 for n in range(8))
    same(exec(client, "fed", ["head", "-c", "320000"], stdin=pieces).output, b"".join(bytes([n]) * 40_000 for n in range(8)))


def loss():
    running("lost")

    def stopped_meanwhile():
        # By then the command has been asked for; there is no input.
        client.instances.stop("lost")
        yield b""

    lost = exec(client, "lost", ["sleep", "600"], stdin=stopped_meanwhile())
    assert lost.exit_code == 127 and lost.output.startswith(b"Error: "), lost


def files():
    running("box")
    with tempfile.TemporaryDirectory() as place:
        source, back = Path(place, "from"), Path(place, "to")
        Path(source, "deep").mkdir(parents=True)
        contents = {"a.txt": b"hello\n", "empty": b"", "looks.json": b'{"type":"end","final":true}', "deep/large": bytes(range(256)) * 2000}
        for name, content in contents.items():
            Path(source, name).write_bytes(content)
        Path(source, "a.txt").chmod(0o750)
        cp_to_instance(client, "box", source, "/tmp/box")
        same(client.instances.stat("box", path="/tmp/box/a.txt").mode, 0o750)
        cp_from_instance(client, "box", "/tmp/box", back)
        for name, content in contents.items():
            same(Path(back, "box", name).read_bytes(), content)
        raises(CopyProtocolError, lambda: cp_from_instance(client, "box", "/absent", back))

        async def again():
            async with AsyncHypeman() as other:
                await cp_to_instance_async(other, "box", Path(source, "a.txt"), "/tmp/b.txt")
                await cp_from_instance_async(other, "box", "/tmp/b.txt", back)

        asyncio.run(again())
        same(Path(back, "b.txt").read_bytes(), b"hello\n")


def logs():
    client.instances.create(name="talks", image=IMAGE, size="512MB", cmd=["echo", "one"])
    client.instances.wait("talks", state="Stopped", api_timeout="60s")
    same(list(client.instances.logs("talks")), ["one"])
    same(list(client.instances.logs("talks", tail=0)), [])
    with client.instances.logs("talks", follow=True, tail=1) as lines:
        same(next(lines), "one")
        client.instances.start("talks", cmd=["echo", "two"])
        same(next(lines), "two")
        client.instances.wait("talks", state="Stopped", api_timeout="60s")
        client.instances.start("talks", cmd=["echo", "three"])
        same(next(lines), "three")

    async def followed():
        async with AsyncHypeman() as other:
            async with await other.instances.logs("talks", follow=True, tail=0) as lines:
                await other.instances.wait("talks", state="Stopped", api_timeout="60s")
                await other.instances.start("talks", cmd=["echo", "four"])
                async for line in lines:
                    same(line, "four")
                    break

    asyncio.run(followed())


def pushes():
    host = str(client.base_url).split("/")[2]
    image = client.images.get(IMAGE)
    same((image.status, [one.name for one in client.images.list()]), ("ready", [image.name]))
    begun = client.pushes.create(image=IMAGE, target=f"{host}/copy:2", credentials={"registry_token": client.api_key})
    while client.pushes.get(begun.id).status not in ("pushed", "failed"):
        pass
    push = client.pushes.get(begun.id)
    same((push.status, push.error), ("pushed", None))
    same([one.id for one in client.pushes.list()], [begun.id])
    same(client.images.get("copy:2").digest, image.digest)


def volumes():
    made = client.volumes.create(name="data", size_gb=1, tags={"team": "py"})
    same([one.id for one in client.volumes.list(tags={"team": "py"})], [made.id])
    client.volumes.delete(made.id)
    raises(hypeman.NotFoundError, lambda: client.volumes.get(made.id))


STORIES = {story.__name__: story for story in (life, commands, stdin, loss, files, logs, pushes, volumes)}

STORIES[sys.argv[1]]()
for left in client.instances.list():
    client.instances.delete(left.id, graceful_shutdown=False)
# Threads of a client that is left behind keep nothing here.
sys.stdout.flush()
os._exit(0)
