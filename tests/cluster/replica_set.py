"""replica_set.py PORT [MEMBER_PORT...]: exits with 0 if the mongod at 127.0.0.1:PORT is ready. It is ready as the writable
primary of its one-member replica set or, with MEMBER_PORTs, if it knows a primary. The script initiates the replica set if
necessary. It implements OP_MSG, because neither mongosh nor a driver is installed."""

import socket
import struct
import sys


def bson(document):
    body = b"".join(element(key, value) for key, value in document.items())
    return struct.pack("<i", len(body) + 5) + body + b"\0"


def element(key, value):
    name = key.encode() + b"\0"
    if isinstance(value, int):
        return b"\x10" + name + struct.pack("<i", value)
    if isinstance(value, str):
        text = value.encode() + b"\0"
        return b"\x02" + name + struct.pack("<i", len(text)) + text
    if isinstance(value, list):
        return b"\x04" + name + bson({str(i): item for i, item in enumerate(value)})
    return b"\x03" + name + bson(value)


def command(connection, document):
    body = struct.pack("<iB", 0, 0) + bson({**document, "$db": "admin"})
    connection.sendall(struct.pack("<iiii", 16 + len(body), 1, 0, 2013) + body)
    with connection.makefile("rb") as answer:
        (length,) = struct.unpack("<i", answer.read(4))
        return answer.read(length - 4)


def main(port, members):
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    except OSError:
        return 1
    with connection:
        hello = command(connection, {"hello": 1})
        if b"\x08isWritablePrimary\0\x01" in hello:
            return 0
        if members and b"\x08secondary\0\x01" in hello and b"\x02primary\0" in hello:
            return 0
        if b"\x02setName\0" not in hello:
            hosts = [{"_id": i, "host": f"127.0.0.1:{p}"} for i, p in enumerate(members or [port])]
            # Faults are short, so elections must be short, too.
            times = {"electionTimeoutMillis": 1000, "heartbeatIntervalMillis": 250, "heartbeatTimeoutSecs": 1}
            config = {"_id": "rs0", "members": hosts, **({"settings": times} if members else {})}
            command(connection, {"replSetInitiate": config})
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
