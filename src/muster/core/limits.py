"""Every bound, with its unit and its reason."""

from __future__ import annotations

#: Largest encoded body in bytes; larger payloads travel by claim check (a file and its digest).
BODY_BYTES_MAX = 1 << 20
#: Longest message type in bytes; it stands in every frame.
TYPE_BYTES_MAX = 64
#: Deliveries of one lane that may be in hand at once: the acked and attempts rings of a 4 KiB cursor hold this many.
WINDOW = 240
#: Messages a sender may have stored and unacked on one lane (the recipient grants it in the cursor).
LANE_CREDIT = 1000
#: Identities of a store, unless its settings say otherwise: every one owns a floor of credit in every inbox.
AGENTS_MAX = 2000
#: Agents of a fleet up to which each of them holds keys for writing to all others, unless its configuration says otherwise: a million
#: keys are derived in a second.
MESH_AGENTS_MAX = 1000
#: Messages stored for one recipient and unacked, over all senders: four full lanes for each of AGENTS_MAX, so that by default
#: no credit has to be lent; with a smaller bound lanes share it.
INBOX_MESSAGES_MAX = 8_000_000
#: Messages stored by one sender and unacked, over all recipients: a full lane to every other agent.
OUTBOX_MESSAGES_MAX = 4_000_000
#: Bytes of segments that one lane, one sender and one fleet may hold.
LANE_BYTES_MAX = 256 << 20
OUTBOX_BYTES_MAX = 4 << 30
FLEET_MESSAGES_MAX = 1_000_000_000
FLEET_BYTES_MAX = 4 << 40
#: First segment of a lane: with lane page and cursor a lane costs 16 KiB of store.
SEGMENT_BYTES_FIRST = 8 << 10
#: Segments double up to this size; one message of BODY_BYTES_MAX always fits.
SEGMENT_BYTES_MAX = 4 << 20
#: Lanes that one process keeps open in each direction, shared by the identities it hosts; others are closed and opened again when they are
#: used. A lane takes two to four descriptors.
OPEN_LANES_MAX = 1024
#: Deliveries of one message before it becomes a dead letter.
ATTEMPTS_MAX = 5
#: Spare cursors a recipient keeps allocated, so that new lanes can be drained when the store is full.
SPARE_CURSORS = 4
#: Wait before a sender whose message is not taken rings again; a safety net, counted when it was needed.
RERING_S = 1.0
#: The same, once a recipient has stayed silent for long: the pause doubles up to this.
RERING_MAX_S = 30.0
#: Interval of the safety sweep over all lanes; jittered. It finds nothing when the bell works.
SWEEP_S = 60.0
#: Hops a message's causal chain may take before it is refused (stops echo storms), unless the fleet says otherwise; a frame counts them
#: in a byte.
HOPS_MAX = 16
HOPS_MAX_MAX = 254
#: Messages that an agent took and can still answer from a command.
HEARD_MAX = 256
#: Messages per minute that one agent may send to another because of messages it got, and how many of them at once: what answers
#: everything it hears is slowed down before it fills inboxes. Replies to asks and messages without a cause do not count.
PAIR_RATE_MAX = 600
PAIR_BURST_MAX = 100
#: Wait suggested to a sender that met a full inbox.
INBOX_FULL_RETRY_S = 0.1
#: Wait suggested to a sender that met a full store.
STORE_FULL_RETRY_S = 1.0
#: How long taking an identity waits for somebody who lends credit in its name: milliseconds, unless that process is stopped.
ABSENT_LOCK_S = 0.1
#: How long `send` waits by itself for a recipient that wants its senders to wait, or that evicts to make room.
OVERFLOW_WAIT_S = 30.0
EVICTION_WAIT_S = 1.0
#: How long a one-shot sender waits for an identity held by another one-shot process.
IDENTITY_WAIT_S = 5.0

#: stdout or stderr bytes copied into a result message; the whole output travels by file.
OUTPUT_INLINE_BYTES_MAX = 64 << 10
#: stdout or stderr bytes copied into a line of the results file, marked when cut.
OUTPUT_RESULT_BYTES_MAX = 16 << 10
#: Tasks assigned to an agent beyond those it works on, so that it never waits for the coordinator.
PREFETCH = 1
#: Attempts that may die with their worker before the task is dead-lettered (it may be what kills them).
TASK_DEATHS_MAX = 5
#: Tasks that ended without success and are kept to be retried, and bytes of their inputs; each snapshot of the log holds them all.
TASKS_KEPT_MAX = 10_000
TASKS_KEPT_BYTES_MAX = 16 << 20
#: Combinations of kind and tags that tasks wait on at a time: an assignment looks at each of them.
TASK_ROUTES_MAX = 256
#: Tasks that one comes after, tags that it or a kind has, and bytes of a tag.
TASK_AFTER_MAX = 1000
TASK_TAGS_MAX = 16
#: Priorities reach from minus this to this.
TASK_PRIORITY_MAX = 100
#: Longest delay of a task, and most attempts that one may ask for.
TASK_DELAY_S_MAX = 366 * 86_400.0
TASK_ATTEMPTS_MAX = 1_000_000
#: Longest time that a vendor's limit is taken to last: a weekly one, and a day.
LIMITED_S_MAX = 8 * 86_400.0
#: Most that is believed of one attempt or request: its tokens and its cost.
TOKENS_MAX = 10**12
COST_USD_MAX = 1e6
#: Longest name of a coding command line's session that is kept for the next attempt.
SESSION_CHARS_MAX = 256
#: The last second of the year 9999: no date can be written beyond it.
UNIX_S_MAX = 253_402_300_799.0
#: Worker restarts within the period before the worker is quarantined.
RESTARTS_MAX = 5
RESTART_PERIOD_S = 30.0
#: Wait before the second restart within the period, and the longest one after doubling.
RESTART_DELAY_S, RESTART_DELAY_MAX_S = 0.1, 5.0
#: Time for a worker's agents to join: imports of a handler, identities held by an incarnation that is being cleared away.
READY_TIMEOUT_S = 60.0
#: Agents of one kind that `muster scale` goes up to: the roster, the keys and the processors set the bound that counts.
AGENTS_PER_KIND_MAX = 10_000
#: Coordinator restarts within the period before the orphan policy is carried out.
COORDINATOR_RESTARTS_MAX = 10
COORDINATOR_RESTART_PERIOD_S = 60.0
#: Time to finish work in hand on an orderly shutdown.
GRACE_S = 10.0
#: Between SIGTERM and SIGKILL for a command's process tree.
KILL_GRACE_S = 2.0
#: The same when the fleet is to end now: on a second signal, or by `--halt now`.
KILL_GRACE_NOW_S = 0.5
#: Heartbeat of a busy agent's status page, and of an idle one.
HEARTBEAT_BUSY_S = 1.0
HEARTBEAT_IDLE_S = 10.0
#: Metric snapshots sent to the coordinator.
METRICS_INTERVAL_S = 5.0
#: Silence after which a living agent is suspected (never declared dead: that needs proof).
SUSPECT_AFTER_S = 30.0
#: Inputs the command line sends to the coordinator in one message.
SUBMIT_BATCH = 200
#: Unfinished tasks above which the command line stops reading inputs.
OPEN_TASKS_MAX = 20_000
#: Agents of a team, unless a fleet says otherwise: a coordinator serves so many beside its root on a fraction of a core.
AGENTS_PER_TEAM = 30
#: Before the end of a grace a team's own agents are ended, so that it can still report: seconds, at most a half of what is left.
TEAM_MARGIN_S = 0.5
#: Shortest and longest time between two looks at the memory of the attempts that a worker runs, and the share of the worker's time that
#: looking may take.
RSS_SAMPLE_S = 1.0
RSS_SAMPLE_MAX_S = 10.0
RSS_SAMPLE_SHARE = 0.05
#: What an attempt can fill at most in a second (a core writes fresh pages at 1 to 2 GB/s): one far from its limit is looked at less often.
RSS_FILL_BYTES_PER_S = 4_000_000_000
#: Locks that are held or waited for in a fleet, and by one agent; names in one of them; bytes of a name.
LOCKS_MAX = 4096
LOCKS_PER_AGENT_MAX = 256
LOCK_NAMES_MAX = 32
LOCK_NAME_BYTES_MAX = 512
#: Globs among them, of a fleet and of one agent, and places in a glob: a new lock is compared with all, and that takes the coordinator's
#: time, microseconds for globs that begin differently, up to two milliseconds for the worst.
LOCK_GLOBS_MAX = 1024
LOCK_GLOBS_PER_AGENT_MAX = 64
LOCK_GLOB_PLACES_MAX = 128
#: Time for which a lease holds without being renewed; its holder renews it after a third of that.
LOCK_TTL_S = 60.0
LOCK_TTL_S_MIN, LOCK_TTL_S_MAX = 1.0, 86_400.0
#: Memory and descriptors that a machine must have left for anything new to begin: below that it is about to kill at random.
ADMIT_MEMORY_BYTES = 200_000_000
ADMIT_FDS = 1_000
