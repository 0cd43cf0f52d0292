"""The same questions to QEMU and to passthru, with the same devices: all members that QEMU's answers have are in
passthru's, with values of the same kind, and mistakes have the same class. Says what differs; nothing: all is well."""

import asyncio
import sys

from qemu.qmp import ExecuteError, QMPClient

QUESTIONS = [
    "query-status", "query-version", "query-name", "query-uuid", "query-kvm", "query-target", "query-cpus-fast",
    "query-chardev", "query-chardev-backends", "query-pci", "query-block", "query-named-block-nodes", "query-commands",
    "query-machines", "query-current-machine", "query-memory-devices", "query-memory-size-summary", "query-iothreads",
    ("qom-list-types", {"implements": "device"}), ("device-list-properties", {"typename": "virtio-rng-pci"}),
    ("qom-get", {"path": "/machine/peripheral/vm0", "property": "requested-size"}),
]
MISTAKES = [
    ("no-such", {}), ("stop", {"now": True}), ("device_del", {}), ("device_del", {"id": 1}), ("device_del", {"id": "x"}),
    ("device_add", {"driver": "no-such"}), ("device_add", {"driver": "virtio-rng-pci", "bus": "x"}),
    ("device-list-properties", {"typename": "x"}), ("object-add", {"qom-type": "no-such", "id": "a"}),
    ("object-del", {"id": "x"}), ("chardev-remove", {"id": "x"}), ("chardev-remove", {"id": "c0"}),
    ("netdev_add", {"type": "no-such", "id": "a"}), ("netdev_del", {"id": "x"}),
    ("blockdev-add", {"driver": "null-co", "node-name": "d0"}), ("blockdev-del", {"node-name": "x"}),
    ("blockdev-del", {"node-name": "d0"}), ("block-commit", {"device": "x"}), ("ringbuf-read", {"device": "c0", "size": 1}),
    ("ringbuf-read", {"device": "x", "size": 1}), ("qom-get", {"path": "/machine/peripheral/x", "property": "y"}),
    ("qom-get", {"path": "/machine/peripheral/vm0", "property": "x"}), ("balloon", {"value": 1}), ("query-balloon", {}),
    ("qom-set", {"path": "/machine/peripheral/vm0", "property": "requested-size", "value": 1}),
    ("set-action", {"panic": "x"}), ("qmp_capabilities", {}),
]
HUMAN = ["info status", "info name", "info uuid", "info kvm"]
# Only said of a machine with memory nodes; the name of QEMU's memory; what only QEMU's machine types of old are; and
# passthru's types have no parents beside their kinds.
APART = {
    "query-cpus-fast [].props.node-id int", "query-machines [].default-ram-id str", "query-machines [].alias str",
    "qom-list-types [].abstract bool", "device-list-properties [].default-value int",
    "device-list-properties [].default-value bool",
}


def shape(value, at=""):
    """Where an answer has values, and of which kind."""
    if isinstance(value, dict):
        return set().union(*(shape(inner, f"{at}.{name}") for name, inner in value.items())) if value else set()
    if isinstance(value, list):
        return set().union(*(shape(inner, f"{at}[]") for inner in value)) if value else set()
    return {f"{at} {type(value).__name__}"}


async def ask(client, command, arguments):
    try:
        return await client.execute(command, arguments), None
    except ExecuteError as error:
        return None, error.error.error.class_


async def main(qemu_socket, our_socket):
    qemu, ours = QMPClient("qemu"), QMPClient("passthru")
    await qemu.connect(qemu_socket)
    await ours.connect(our_socket)
    for question in QUESTIONS:
        command, arguments = question if isinstance(question, tuple) else (question, {})
        (theirs, _), (answer, failure) = await ask(qemu, command, arguments), await ask(ours, command, arguments)
        if failure:
            print("differs", command, failure)
        missing = {f"{command} {place.lstrip('.')}" for place in shape(theirs) - shape(answer)} - APART
        for place in sorted(missing):
            print("differs", place)
    for command, arguments in MISTAKES:
        (_, theirs), (_, answer) = await ask(qemu, command, arguments), await ask(ours, command, arguments)
        if theirs != answer:
            print("differs", command, arguments, theirs, answer)
    for line in HUMAN:
        said = [(await ask(client, "human-monitor-command", {"command-line": line}))[0] for client in (qemu, ours)]
        if said[0] != said[1]:
            print("differs", line, said)
    for client in (qemu, ours):
        await client.execute("quit")
        try:
            await client.disconnect()
        except EOFError:
            # The other end was faster.
            pass
    print("compared", len(QUESTIONS), len(MISTAKES))


asyncio.run(main(sys.argv[1], sys.argv[2]))
