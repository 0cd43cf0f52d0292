"""QEMU's own client of QMP talks to passthru as to QEMU. Says what it saw; an exception ends it."""

import asyncio
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient


async def main(path):
    client = QMPClient("lab")
    events = EventListener()
    client.register_listener(events)
    await client.connect(path)
    print("greeting", sorted(client.greeting.QMP.version["qemu"]))

    async def event(name):
        async with asyncio.timeout(60):
            async for message in events:
                if message["event"] == name:
                    return message

    print("status", (await client.execute("query-status"))["status"])
    await client.execute("stop")
    await event("STOP")
    print("status", (await client.execute("query-status"))["status"])
    await client.execute("cont")
    await event("RESUME")
    try:
        await client.execute("device_del", {"id": "nothing"})
    except ExecuteError as error:
        print("refused", error.error.error.class_)
    await client.execute("object-add", {"qom-type": "rng-random", "id": "r1", "filename": "/dev/urandom"})
    await client.execute("device_add", {"driver": "virtio-rng-pci", "id": "rng1", "rng": "r1", "bus": "rp1"})
    await client.execute("device_del", {"id": "rng1"})
    print("deleted", (await event("DEVICE_DELETED"))["data"]["device"])
    await client.execute("object-del", {"id": "r1"})
    await client.execute("chardev-add", {"id": "c1", "backend": {"type": "null", "data": {}}})
    print("chardevs", sorted(c["label"] for c in await client.execute("query-chardev")))
    await client.execute("chardev-remove", {"id": "c1"})
    node = {"driver": "null-co", "node-name": "n1", "size": 1048576}
    await client.execute("blockdev-add", node)
    await client.execute("blockdev-del", {"node-name": "n1"})
    print("cpus", len(await client.execute("query-cpus-fast")))
    buses = await client.execute("query-pci")
    print("bridge", hex(buses[0]["devices"][0]["id"]["device"]))
    print("types", "virtio-rng-pci" in [t["name"] for t in await client.execute("qom-list-types")])
    names = [p["name"] for p in await client.execute("device-list-properties", {"typename": "virtio-rng-pci"})]
    print("properties", "rng" in names)
    # Many at once: each answer finds its question.
    answers = await asyncio.gather(*(client.execute("query-status") for _ in range(32)))
    print("answers", len(answers))
    print("hmp", (await client.execute("human-monitor-command", {"command-line": "info status"})).strip())
    await client.execute("quit")
    try:
        await client.disconnect()
    except EOFError:
        # The other end was faster.
        pass


asyncio.run(main(sys.argv[1]))
