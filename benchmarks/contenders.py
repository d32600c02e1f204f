"""Who passes messages in the cases: muster first, then its peers, from those that promise as much to those that promise less."""

from __future__ import annotations

from benchmarks.peers.jetstream import JetStream
from benchmarks.peers.lanes import Lanes
from benchmarks.peers.port import Peer
from benchmarks.peers.process_queue import ProcessQueue
from benchmarks.peers.redis_streams import RedisStreams
from benchmarks.peers.sqlite_queue import SqliteQueue
from benchmarks.peers.zeromq import ZeroMq
from benchmarks.servers import NATS_SYNCED

MUSTER = Lanes()
MUSTER_POST = Lanes("muster post", awaited=False)
MUSTER_DURABLE = Lanes("muster, durable", durable=True)
REDIS_STREAMS = RedisStreams()
JETSTREAM_MEMORY = JetStream("memory")
JETSTREAM_FILE = JetStream("file")
JETSTREAM_SYNCED = JetStream("file", NATS_SYNCED)
SQLITE = SqliteQueue()
ZEROMQ = ZeroMq()
PROCESS_QUEUE = ProcessQueue()

#: The peers that every pattern is run with.
PEERS: list[Peer] = [REDIS_STREAMS, JETSTREAM_MEMORY, JETSTREAM_FILE, SQLITE, ZEROMQ, PROCESS_QUEUE]
