"""Every row of the tables in docs/threats.md, by adversary, in the page's order.

To add one: a value here, `@threat(rows.ITS_NAME)` on each test that shows it, and `python -m tests.support.threats`.
tests/docs/test_threats.py holds that each row has a test.
"""

from __future__ import annotations

from tests.support.threats.row import Adversary, Row

# The bus's operator

BUS = Adversary(
    "The bus's operator",
    "Has the bus and the network: reads, drops, delays, repeats, reorders, forges and rolls back whatever is sent or "
    "stored, shows each worker something else, and sets clocks.",
)

EVIDENCE_RELAYED = Row(
    by=BUS,
    attack="Relays evidence of a good machine to the session of a bad one, or of one session to another.",
    prevention="A quote's report data binds role, session, subject, nonce, transcript, the enclave's key and all that "
    "is sent beside it.",
)
EVIDENCE_FOREIGN = Row(
    by=BUS,
    attack="Encrypts somebody else's genuine evidence to a challenge, which is public.",
    prevention="It ends nothing: evidence that is rejected is told to its sender, and honest evidence that follows is "
    "taken.",
    left="eight such messages before the honest one use up what is judged of a session, which then expires and is "
    "begun anew.",
)
EVIDENCE_LATE = Row(
    by=BUS,
    attack="Delays or replays evidence to keep a lease alive.",
    prevention="A lease counts from its challenge, evidence past its window renews nothing, and no quote answers two "
    "questions.",
)
PROOF_REPLAYED = Row(
    by=BUS,
    attack="Reflects or replays a proof of K or of co-location.",
    prevention="The HMAC covers its label, the nonce and the transcript, and a proof is taken once.",
)
MESSAGE_FORGED = Row(
    by=BUS,
    attack="Forges or mangles a message to a manager or to an agent.",
    prevention="It is dropped, counted and told, and the honest session goes on.",
)
MESSAGE_REORDERED = Row(
    by=BUS,
    attack="Doubles, delays, loses or reorders messages.",
    prevention="Nothing happens twice, and what was lost is said again.",
)
WORK_FORGED = Row(
    by=BUS,
    attack="Forges, copies or moves a message from one session to another, or from a host about a key.",
    prevention="Such messages are sealed under the storage key and bound to their subject, and name the host's "
    "session.",
)
RECORD_FORGED = Row(
    by=BUS,
    attack="Reads, changes or moves a session's record, or makes up the pointer to it.",
    prevention="Records and pointers are sealed under the storage key and bound to their place.",
)
RECORD_ROLLED_BACK = Row(
    by=BUS,
    attack="Rolls back or deletes a session's record or pointer, and plays again all that was ever said.",
    prevention="A worker refuses a record that is older than it has seen, nothing is leased without good new evidence "
    "beyond what had not yet expired, and no key encrypts two messages.",
    left="a worker that was started since takes up the older record of a session that has not ended, where it stands.",
)
SESSION_RETURNS = Row(
    by=BUS,
    attack="Shows a session that has ended or was superseded as live: its record, its pointer and its leases together.",
    prevention="A session has one rank for good: a worker that has seen its end or a newer one refuses it, also after "
    "a restart, and a gateway that has refuses its leases.",
    premise="the worker has its `marks.sqlite`, where an end stays for a day, or the gateway its floors",
    left="a superseded session stays at a gateway that is never shown the newer one.",
)
WORKERS_PARTED = Row(
    by=BUS,
    attack="Parts the workers: hides from one a revocation, an enrolment, a policy or a session that others have seen.",
    prevention="A gateway encloses in its signed report what it refuses a lease for, and a worker that hears it leases "
    "nothing below.",
    premise="the gateway has seen it, and its report reaches the worker",
    left="a worker that never hears goes on issuing certificates, and K, from which hosts derive K_app, also while "
    "gateways refuse its leases.",
)
STATEMENT_MOVED = Row(
    by=BUS,
    attack="Moves, copies or keeps a signed statement: a policy on trial, an enrolment for another host or "
    "deployment, an expired command.",
    prevention="Purpose, place, author's role and deployment are signed, and a manager's signed word says what is in "
    "force.",
)
STATEMENT_ROLLED_BACK = Row(
    by=BUS,
    attack="Rolls back or hides enrolments or policies.",
    prevention="A worker goes by its own copy of the newest, puts it back, and raises an alarm.",
    premise="the worker has seen the newer one, and has its `state_dir`",
    left="a worker without that memory goes by what the bus shows it, until it hears of a gateway that refuses what it "
    "leases.",
)
ENROLMENT_CHANGED = Row(
    by=BUS,
    attack="Answers late, so that an enrolment is replaced or revoked while evidence is judged by it.",
    prevention="A lease is stored only with the enrolment that its evidence was judged by, read within the second "
    "before.",
    premise="the bus shows the worker the newer one",
)
STATEMENTS_SPLIT = Row(
    by=BUS,
    attack="Shows two workers different states, so that both put something in force with one sequence.",
    prevention="Which of the two counts follows from their bytes, not from the bus's order.",
)
REVOCATION_HIDDEN = Row(
    by=BUS,
    attack="Drops or hides a revocation.",
    prevention="The operator's signed Revoke goes to the gateways before it has any other effect, and `attestgate "
    "revoke` believes signed answers only, and names each gateway that has not confirmed it in 5 s.",
    premise="the operator's file names the gateways",
    left="until it has the Revoke as a [file](gateway.md#block-a-host-or-an-application), a bus can hide it from a "
    "gateway, while a worker from which it is hidden too renews leases.",
)
COMMAND_REPACKED = Row(
    by=BUS,
    attack="Packs a command anew, so that it stands beside a hash that is not its own, in the place of an honest one.",
    prevention="A command is taken in its one encoding.",
)
COMMAND_HELD_BACK = Row(
    by=BUS,
    attack="Holds a command back until a newer one about the same subject is in force.",
    prevention="It is refused, and the command line does not sign it again over the newer one.",
)
LIST_OLDER = Row(
    by=BUS,
    attack="Shows an operator, who signs again what others have signed, a list from before a revocation.",
    prevention="The command names what was seen, and a worker that knows of more refuses it.",
    premise="the worker has seen the revocation",
)
ADMISSION_FORGED = Row(
    by=BUS,
    attack="Forges an admission, a withdrawal or a gateway's report.",
    prevention="Each is believed for its signature, its key and its set of gateways only.",
)
ADMISSION_REPLAYED = Row(
    by=BUS,
    attack="Plays old admissions again, rolls back or deletes what is stored of them, or shows a gateway an older "
    "state of the deployment.",
    prevention="Sequences only rise, a withdrawal outlives every lease signed before it, a deletion changes nothing, "
    "and no lease counts below a gateway's floors: of an ended or superseded session, a revoked subject, a replaced "
    "enrolment or policy.",
    premise="the gateway has seen the newer state, and has its floors",
    left="a worker that is started anew admits a renewed certificate's predecessor again, until its lease's own end, "
    "and what rests on a replaced policy counts for `longest_lease_s` after the newer was seen.",
)
WITHDRAWAL_WITHHELD = Row(
    by=BUS,
    attack="Withholds withdrawals, or ends every connection.",
    prevention="Leases end by themselves at the gateway, and what was missed is applied once it is shown.",
    left="until its lease ends, 30 s by default, who should be out is in; and nobody is admitted while the bus is cut "
    "off.",
)
WAKING_WITHHELD = Row(
    by=BUS,
    attack="Loses, delays or invents the wake-ups by which a session's deadlines are kept.",
    prevention="A worker looks for overdue sessions itself, and a wake-up before its time does nothing.",
)
CLOCK_SET = Row(
    by=BUS,
    attack="Sets the clock of manager, bus, gateway or all of them ahead or back.",
    prevention="What grants counts only if it was not issued ahead of the clock, what takes away always counts, spans "
    "are measured by the monotonic clock, and after a step everybody is judged anew.",
)
COLLATERAL_OLD = Row(
    by=BUS,
    attack="Shows forged, mixed or older collateral, in the cache or in the attestation service's place.",
    prevention="Its signatures are verified at each use, and its numbers never go below those seen or the policy's.",
    premise="a right clock at the manager, for its periods of validity",
)
REVOCATION_LIST_OLD = Row(
    by=BUS,
    attack="Shows an older or a spoiled certificate revocation list.",
    prevention="A manager goes by its own newer copy, and the list's number rises.",
    premise="the worker has its `state_dir`",
    left="a gateway serves whatever list it is shown; what ends access is the lease, not the list.",
)
COMPARE_AND_SET_LOST = Row(
    by=BUS,
    attack="Has a worker lose every compare-and-set.",
    prevention="The worker gives up with an error, and does not try for ever.",
)
NAMES_MADE_UP = Row(
    by=BUS,
    attack="Delivers messages under subjects, names, keys or pointers that nobody may have.",
    prevention="They end no worker, keep no order from the others, and fill no table.",
)
LOG_EDITED = Row(
    by=BUS,
    attack="Edits, drops, truncates, rolls back, forks or adds to the decision log.",
    prevention="Entries and heads are signed, each tree is append-only, and workers, hosts and whoever kept a head "
    "notice an older or another one.",
    premise="somebody has kept a head from before",
)
LOG_SEAM = Row(
    by=BUS,
    attack="Forges the decision log where one of its trees is full and the next begins.",
    prevention="The next tree's first entry names the closed one's root, signed, and a worker checks that it goes on "
    "from what it saw.",
    premise="the worker was not away for longer than a tree lasts, which it is told (`log.gone`)",
)
LOG_LOST = Row(
    by=BUS,
    attack="Loses a decision on its way into the log, or has it made twice.",
    prevention="Its worker misses it and hands it in again, and a session's numbers show a gap or a number twice.",
    left="the last decision of a session leaves no gap if its worker was killed as well.",
)
LOG_STANDS_STILL = Row(
    by=BUS,
    attack="Keeps the log from hearing of a grant, or holds up revocations by keeping it still.",
    prevention="An enrolment, a policy, a host's first lease and a certificate wait for their entry, and renewals and "
    "what takes away wait for none.",
    left="while the log stands still, nothing new is granted.",
)
BUS_READS = Row(
    by=BUS,
    attack="Reads everything that is sent, stored, logged or told.",
    prevention="No secret is in it in the clear, and a session that is over holds none.",
    left="events, leases, enrolments and policies are readable.",
)

# Whoever stole a bus credential

CREDENTIAL = Adversary(
    "A stolen bus credential",
    "Has a credential of one role, and connects with it beside its owner, until it is "
    "[revoked](operations.md#a-stolen-credential). A viewer's is [below](#a-viewer).",
    roles=("any", "manager", "host", "app", "gateway", "operator"),
)

CREDENTIAL_OTHERS = Row(
    by=CREDENTIAL,
    role="any",
    attack="Publishes, subscribes or calls what is another's, or forges or stretches a credential.",
    prevention="Each role is an account of its own, and a credential reaches only the subjects of its own name.",
)
CREDENTIAL_KEPT = Row(
    by=CREDENTIAL,
    role="any",
    attack="Goes on with a credential that was revoked.",
    prevention="The server disconnects it at once, and no restart, upgrade or older copy of the keys undoes that.",
    left="a server of a cluster that was down accepts it for some 5 s after it starts.",
)
HEADERS_REACH = Row(
    by=CREDENTIAL,
    role="any",
    attack="Sends NATS headers that purge, schedule, expire, trace or deduplicate another's messages.",
    prevention="What is not the manager's goes only into streams without those features.",
)
HEADERS_ANSWER = Row(
    by=CREDENTIAL,
    role="any",
    attack="Sends NATS headers that pass for the server's own answers.",
    prevention="A message is told from an answer by what only the server can add.",
)
REPLY_ASTRAY = Row(
    by=CREDENTIAL,
    role="any",
    attack="Names a reply subject at which the server would write on the sender's behalf.",
    prevention="The server's answer stays in the role's own account.",
    left="an answer of the server, never the thief's words, can reach an agent of the same role, which drops it.",
)
ROOM_FILLED = Row(
    by=CREDENTIAL,
    role="any",
    attack="Fills streams, the quarantine or the events, or pushes out others' messages.",
    prevention="Its subjects are enumerated, and each has room for [a few "
    "messages](#what-one-bus-credential-can-fill) of its own.",
)
FLOOD = Row(
    by=CREDENTIAL,
    role="any",
    attack="Sends all it may as fast as it can.",
    prevention="Each class of steps has a consumer of its own, what is over a sender's rate is put back where nobody "
    "else waits, and the kernel limits each machine.",
    left="six machines that flood at once keep the server so busy that leases lapse.",
)
MESSAGE_COSTLY = Row(
    by=CREDENTIAL,
    role="any",
    attack="Makes a message costly to read: wrong items, unknown keys, nesting, announced sizes.",
    prevention="Each step and field has a maximum, and the decoder's work is bounded by what the model can hold.",
)
CREDENTIAL_MANAGER = Row(
    by=CREDENTIAL,
    role="manager",
    attack="Writes to every stream and bucket of the managers.",
    prevention="It counts for no more than what the bus's operator writes: for nothing without a signature or the "
    "storage key.",
    left="it can delete keys and fill streams, so nobody is admitted, and leases lapse.",
)
ID_CLAIMED = Row(
    by=CREDENTIAL,
    role="host",
    attack="Claims the host's id from another machine or enclave, or speaks in another's session.",
    prevention="An id belongs to the platform and measurement of its enrolment, and a live session ends only for "
    "evidence that fits them.",
)
SESSIONS_WITHOUT_END = Row(
    by=CREDENTIAL,
    role="host",
    attack="Opens sessions without end.",
    prevention="Each name has a limit of new sessions, before anything is stored.",
)
MESSAGES_LARGE = Row(
    by=CREDENTIAL,
    role="host",
    attack="Sends lists of the largest size, or a few bytes that decompress to many.",
    prevention="A list is judged as it is decompressed, in slices, no further than announced, and few large messages "
    "are in hand at a time.",
)
APP_CLAIMED = Row(
    by=CREDENTIAL,
    role="app",
    attack="Claims the application's id from another machine, host or enclave, or for an application nobody enrolled.",
    prevention="The quote must be of an enrolled measurement, of its host's platform, and on a host where it was "
    "placed.",
)
AGENT_MISLED = Row(
    by=CREDENTIAL,
    role="app",
    attack="Has the server send an answer to another agent, or answers a hello in the manager's place.",
    prevention="An agent takes only what the pinned manager has signed for its own hello, and keeps few of the others.",
)
GATEWAY_EVENTS = Row(
    by=CREDENTIAL,
    role="gateway",
    attack="Publishes malformed or oversized events, or in another's name.",
    prevention="It reaches only its own events, of which readers leave out what is none, and show no more than a "
    "bound.",
)
GATEWAY_WRITES = Row(
    by=CREDENTIAL,
    role="gateway",
    attack="Writes an admission, or a report, without the gateway's key.",
    prevention="The bus lets it write no admission, and a report counts for its gateway's signature only.",
)
COMMAND_UNSIGNED = Row(
    by=CREDENTIAL,
    role="operator",
    attack="Sends commands without an operator's key.",
    prevention="A command counts for its signature, on its operator's own subject, and an unknown name's is not even "
    "read.",
)
UNREAD = Row(
    by=CREDENTIAL,
    role="operator",
    attack="Asks for much and reads none of it, or takes every connection of its role.",
    prevention="Whoever reads asks for one message at a time, what waits for a connection is bounded, and so are "
    "connections of each role that reads.",
    left="it keeps others of its own role from connecting.",
)

# Whoever stole a signing key

KEY = Adversary(
    "A stolen key",
    "Has a key that signs or seals, and can reach where it counts: the bus with a credential, or a folder of the "
    "gateway.",
    roles=("manager identity", "operator", "policy author", "gateway", "CA", "storage keys"),
)

KEY_MANAGER_GATEWAY = Row(
    by=KEY,
    role="manager identity",
    attack="Signs leases, and so admits whom it likes.",
    left="whom it leases passes until gateways no longer [name the key](operations.md#rotate-the-managers-identity), "
    "but only with a certificate of the deployment's CA.",
)
KEY_MANAGER_FLOORS = Row(
    by=KEY,
    role="manager identity",
    attack="Signs leases of the highest rank, enrolment or policy version, so that gateways refuse the honest ones.",
    left="they do until the key is replaced and each gateway begins with "
    "[new floors](gateway.md#what-a-gateway-remembers).",
)
KEY_MANAGER_ENROLS = Row(
    by=KEY,
    role="manager identity",
    attack="Enrols somebody, or puts a policy in force.",
    prevention="An operator or policy author must have signed it.",
    left="it can say that anything is in force again that one of them has ever signed, until no worker names the key, "
    "also as a former identity.",
)
KEY_MANAGER_LOG = Row(
    by=KEY,
    role="manager identity",
    attack="Signs another decision log.",
    prevention="Workers, hosts and whoever kept a head see that the log was forked.",
    premise="they are shown both logs, or keep their heads where the thief does not write",
    left="entries that it adds to the true log pass for a manager's.",
)
KEY_OPERATOR = Row(
    by=KEY,
    role="operator",
    attack="Enrols, revokes, drops from the quarantine, or uses break-glass as that operator.",
    prevention="Once the key is out of the managers' and gateways' settings, all that it has signed is void and "
    "nothing else is, and no sequence that it used keeps others from acting.",
    left="until then it enrols enclaves of its own, and revokes those of others.",
)
KEY_OPERATOR_POLICY = Row(
    by=KEY,
    role="operator",
    attack="Puts a policy of its own in force, fills the policies with documents, or keeps others from trying one.",
    prevention="A manifest counts for its author's signature only, nothing is stored that it does not name, and a "
    "trial is replaced by whoever signs next.",
)
KEY_OPERATOR_GLASS = Row(
    by=KEY,
    role="operator",
    attack="Admits a certificate by break-glass.",
    prevention="It must be a certificate of the CA, ends after `longest_s`, loses against a withdrawal and a Revoke, "
    "is an alarm, and is logged in the name of its key.",
    left="within that time it is admitted at each gateway whose folder has the file.",
)
KEY_AUTHOR = Row(
    by=KEY,
    role="policy author",
    attack="Signs a policy that accepts everything, or has the highest version and floors.",
    prevention="An operator must order it as well, and once the key is out of the settings its policies are void, "
    "and at the managers their versions and floors.",
    left="an operator who puts it in force unread does the thief's work.",
)
KEY_AUTHOR_LAST = Row(
    by=KEY,
    role="policy author",
    attack="Has the last of all policy versions put in force, so that gateways take no lease by another's.",
    prevention="A version is bounded by the highest so far and by the clock: there is always one above.",
    left="a version that gateways have seen stays their floor when the key is gone, until a higher one is in force.",
)
KEY_GATEWAY_REPORTS = Row(
    by=KEY,
    role="gateway",
    attack="Reports that a certificate is admitted where it is not.",
    prevention="`reports_before_ready` different gateways must have reported it, each in its own name.",
    left="with the default of one, the application is told that it is ready, and the log says so.",
)
KEY_GATEWAY_ADMITS = Row(
    by=KEY,
    role="gateway",
    attack="Signs a lease, or reports that an operator has used break-glass.",
    prevention="A lease needs a manager's signature, and a break-glass entry needs an operator's.",
)
KEY_GATEWAY_CUTS = Row(
    by=KEY,
    role="gateway",
    attack="Reports a Revoke, an enrolment or a session that nobody has signed, or a true Revoke that is over.",
    prevention="A worker learns only what an operator or a manager has signed about that subject, and a later "
    "enrolment outranks a Revoke.",
)
KEY_GATEWAY_WORK = Row(
    by=KEY,
    role="gateway",
    attack="Reports made-up certificates, or true ones without end.",
    prevention="After a few that nobody leased a report is dropped, and each lease is passed on to its session once.",
)
KEY_CA_CLIENT = Row(
    by=KEY,
    role="CA",
    attack="Issues itself a certificate, also with the serial number or identity of an admitted one.",
    prevention="nginx admits only a serial number that is leased, with the hash of that very certificate.",
    left="a [stock nginx](gateway.md#use-a-stock-nginx-without-njs) compares no hash, so an admitted serial number "
    "passes.",
)
KEY_CA_SERVER = Row(
    by=KEY,
    role="CA",
    attack="Passes for the gateway to applications.",
    left="applications believe it until the CA is [replaced](operations.md#rotate-the-root-ca); it cannot use what "
    "they send at the true gateway, where their keys are needed.",
)
KEY_STORAGE = Row(
    by=KEY,
    role="storage keys",
    attack="Reads sessions' secrets, and makes records that managers believe.",
    left="who writes to the bus as well has a manager's powers over enrolled subjects, until the keys are "
    "[rotated](operations.md#rotate-the-storage-keys); enrolment is still read anew before anything is issued.",
)

# Root on a host

ROOT = Adversary(
    "Root on a host",
    "Has a machine outside the policy, or an enrolled host after its enrolment, with its agents' credentials and "
    "files; or a container of another tenant there. SGX and TPM themselves are not broken.",
)

VOLUME_COPIED = Row(
    by=ROOT,
    attack="Copies the data volume, changes it, reads the key in it twice, or puts it back later.",
    prevention="The key unseals on its platform only, opens in one instance of one session only, and is used once.",
)
SIBLING = Row(
    by=ROOT,
    attack="Starts a sibling enclave of the same signer, or a second instance.",
    prevention="The inner layer opens only with the key of the quoted instance.",
)
TWO_MACHINES = Row(
    by=ROOT,
    attack="Runs the application's enclave on another machine than its host's.",
    prevention="Both quotes must be of one platform, and K_app is sealed to it.",
)
OTHER_CODE = Row(
    by=ROOT,
    attack="Starts changed code, a debug enclave, or an enclave of another signer.",
    prevention="The measurement must be an enrolled one, and every pin of the policy has its own refusal.",
)
SIMULATED = Row(
    by=ROOT,
    attack="Runs the simulated platform, whose keys are software.",
    prevention="The production profile, which is the default, refuses it at the manager and at the agents.",
)
TCB_OLD = Row(
    by=ROOT,
    attack="Quotes with an old, revoked or misconfigured TCB, a TDX quote, or trailing bytes.",
    prevention="Each field and status that the policy does not accept is refused with its own reason.",
)
TPM_OTHER = Row(
    by=ROOT,
    attack="Answers with another machine's TPM, an old quote of the TPM, or none.",
    prevention="The enrolment pins SGX platform and attestation key, the quote covers the challenge, and its counters "
    "only rise.",
    left="that both were in one machine when they were enrolled is the operator's word.",
)
BOOT_OTHER = Row(
    by=ROOT,
    attack="Boots another kernel or firmware.",
    prevention="PCR 0-9 must be those of an enrolled boot.",
    premise="the host's TPM is enrolled with golden values",
)
LIST_EDITED = Row(
    by=ROOT,
    attack="Edits, truncates, reorders or rewrites the measurement list.",
    prevention="Template hashes are recomputed, PCR 10 is replayed against the TPM's quote, and what was seen before "
    "must stand at the beginning.",
    premise="a trusted kernel; and for what was measured before the first look, an enrolled TPM",
)
LIST_UNANCHORED = Row(
    by=ROOT,
    attack="Makes up a measurement list on a host without a TPM.",
    prevention="It is refused as `unanchored`, unless the host policy accepts that.",
    left="where it is accepted, the list is the kernel's own word, and says so in events, leases and the header to "
    "the controller.",
)
KERNEL_LIES = Row(
    by=ROOT,
    attack="Compromises the kernel after boot, and measures nothing from then on.",
    left="neither IMA nor a TPM shows it; enclaves' code and keys, the platform, and what had been measured before "
    "are still judged.",
)
LIST_DRIFTED = Row(
    by=ROOT,
    attack="Runs an unknown program.",
    prevention="It is in the list from then on, and the host and its applications are cut off at the next recheck.",
    premise="a trusted kernel",
)
LIST_REWRITTEN = Row(
    by=ROOT,
    attack="Drifts on a host without a TPM, rewrites the list to a good one, and begins a new session.",
    prevention="With `after_drift` = `hold` in the host policy it is [held]"
    "(host-integrity.md#hold-a-host-that-drifted) until an operator enrols it again.",
    premise="the worker has seen the end, or the bus shows it the hold",
    left="without that policy it is trusted again by itself.",
)
HOST_RESTARTED = Row(
    by=ROOT,
    attack="Restarts an agent, or starts it twice.",
    prevention="Session keys and K are in enclave memory only: the new session supersedes the old one, and "
    "applications prove themselves again.",
)
HOST_SILENT = Row(
    by=ROOT,
    attack="Falls silent instead of answering a recheck.",
    prevention="Its lease and those of its applications end, also if every worker was started anew.",
)
HOST_ENDLESS = Row(
    by=ROOT,
    attack="Makes the end of its session too large to record: many application sessions, long file names.",
    prevention="Notices share the record's reasons, and a verdict has a bound.",
)
VOLUME_TRAPPED = Row(
    by=ROOT,
    attack="Puts a pipe, or what never ends, in the place of a key, a measurement list or the TPM's service.",
    prevention="The agent reads regular files only, up to a bound, and waits for the TPM's service only so long.",
)
KEY_FROM_OUTSIDE = Row(
    by=ROOT,
    attack="Gives the enclave a key from outside, or passes others' requests through it.",
    prevention="Both need the enclave's own code and the policy, and the certificate and lease are marked.",
)
SECRETS_ON_DISK = Row(
    by=ROOT,
    attack="Reads the files with keys on a machine of managers, gateways or agents, as another user.",
    prevention="Files with secrets are their owner's alone.",
    premise="a trusted kernel there: its root reads them",
)

# A malicious attested application

APP = Adversary(
    "A malicious attested application",
    "Is enrolled, attested and admitted, and does as it likes. What its rules allow, it may do at the controller.",
)

RULES = Row(
    by=APP,
    attack="Asks for what its rules do not allow, in any spelling.",
    prevention="nginx judges the very target that goes upstream, and refuses what can be read in two ways.",
    left="what the rules allow: grant few methods and paths.",
)
IDENTITY_SPOOFED = Row(
    by=APP,
    attack="Names itself by headers, or by a certificate request for other names, keys or purposes.",
    prevention="Only listed headers go upstream, and a certificate has the one name of the enrolment, for clients "
    "only.",
)
CONNECTION_OUTLIVES = Row(
    by=APP,
    attack="Outlives its admission: kept connections, streams, slow bodies, upgrades, WebSockets, smuggled requests.",
    prevention="Every request, chunk and WebSocket is checked against the admissions, and nothing else is upgraded.",
)
SHARE_TAKEN = Row(
    by=APP,
    attack="Takes all connections, large bodies or WebSockets.",
    prevention="Each application has its share, with whichever of its certificates.",
)
HOST_FILE_WRITTEN = Row(
    by=APP,
    attack="Puts a link in its volume, so that the host's enclave writes elsewhere.",
    prevention="The host's enclave writes through no link.",
)
APP_AS_GATEWAY = Row(
    by=APP,
    attack="Passes for the gateway to other applications.",
    prevention="Its certificate is for a client, and the gateway's name is pinned.",
)
LOG_SPOILED = Row(
    by=APP,
    attack="Spoils logs, metrics or an operator's terminal with what it or its host's agent says.",
    prevention="Logs are JSON, control characters are not shown, and foreign words are no label.",
)
KEY_GIVEN_AWAY = Row(
    by=APP,
    attack="Gives its TLS key away.",
    left="who has the key is let in beside it, within its rules, until the application is revoked.",
)

# A stranger at nginx

STRANGER = Adversary(
    "A stranger at nginx",
    "Has no admitted certificate, and reaches the gateway's port, from one address or many, or a worker's port for "
    "metrics.",
)

NO_CERTIFICATE = Row(
    by=STRANGER,
    attack="Asks without a certificate, with one of another CA, an expired one, or one that is not leased.",
    prevention="The default is deny: the answer is 403, and says nothing else.",
)
CERTIFICATE_TWIN = Row(
    by=STRANGER,
    attack="Has a certificate with an admitted serial number, of another CA or of the same one.",
    prevention="The certificate's chain is verified, and its hash is compared.",
)
SESSION_RESUMED = Row(
    by=STRANGER,
    attack="Resumes a TLS session, or uses an older TLS.",
    prevention="No session is resumed, and TLS is 1.3 unless the settings say otherwise.",
)
ADMIN_REACHED = Row(
    by=STRANGER,
    attack="Reaches the dictionary of admissions, the relay or the controller past nginx's check.",
    prevention="They listen on sockets of their owner only, and take only what nginx and the worker would say.",
    premise="the controller listens [nowhere else](gateway.md#close-other-paths-to-the-controller)",
)
DOOR_HELD = Row(
    by=STRANGER,
    attack="Holds connections open: silent, or with slow headers, bodies or WebSockets.",
    prevention="Connections are limited per address and in total, everything has a deadline, no body of the refused "
    "is read, and the worker has connections of its own.",
    left="14 addresses use up all connections, so that new ones succeed by chance; withdrawals take effect meanwhile.",
)
DOOR_RUSHED = Row(
    by=STRANGER,
    attack="Connects again and again.",
    prevention="New connections are limited per address and in total, and who connects seldom does not wait behind "
    "who connects often.",
    left="50 addresses just below their rate use up the rate of all, so that new ones wait or succeed by chance.",
)
METRICS_HELD = Row(
    by=STRANGER,
    attack="Holds connections to a worker's metrics open.",
    prevention="They take no thread, the oldest are closed, and the page can only be read.",
)

# A viewer

VIEWER = Adversary(
    "A viewer",
    "Has a viewer's credential, stolen or its own, and the stock `nats` CLI.",
)

VIEWER_CHANGES = Row(
    by=VIEWER,
    attack="Changes anything.",
    prevention="It reads copies in an account of its own, and can neither write nor delete there.",
)
VIEWER_DELIVERS = Row(
    by=VIEWER,
    attack="Makes a consumer that delivers where it would be a command.",
    prevention="What its consumers deliver stays in the viewers' account, and is no call to the server there.",
)
VIEWER_READS = Row(
    by=VIEWER,
    attack="Reads what it should not.",
    prevention="Session records, messages to and from agents, and collateral are in no account that it reaches.",
    left="it reads all events, leases and the decision log.",
)
VIEWER_FLOODS = Row(
    by=VIEWER,
    attack="Makes consumers without end, calls the server without pause, or reads nothing of what it asked for.",
    prevention="Consumers, unread bytes and connections are bounded, and managers and gateways wait in no queue with "
    "its calls for what access depends on.",
    premise="one server: in a [cluster](#what-one-bus-credential-can-fill) they do wait",
    left="it can keep other viewers out, and operators' commands waiting.",
)

# Nobody's malice

FAULTS = Adversary(
    "Faults and mistakes",
    "Nobody's malice: processes die, disks fill up, and people mistype.",
)

WORKER_KILLED = Row(
    by=FAULTS,
    attack="A worker is killed, or fails, between any two of its operations on the bus.",
    prevention="Another one comes to the same end, with every decision logged once.",
)
REVOKING_KILLED = Row(
    by=FAULTS,
    attack="A worker is killed, for good, while it applies a revocation.",
    prevention="Gateways have the operator's signed Revoke before it has any other effect.",
)
GATEWAY_KILLED = Row(
    by=FAULTS,
    attack="A gateway worker is killed between its disk, nginx and its confirmation, or nginx loses its memory.",
    prevention="Nothing was confirmed that the worker's successor does not know, whatever the bus shows it, and what "
    "nginx has lost is confirmed anew.",
)
PROCESS_GONE = Row(
    by=FAULTS,
    attack="A manager, gateway worker, nginx, agent or the bus is gone.",
    prevention="Nobody is in for longer than a lease, and what comes back goes on without anybody's help.",
)
MANAGERS_UNREACHED = Row(
    by=FAULTS,
    attack="Neither managers nor bus can be reached when somebody is to be cut off.",
    prevention="An operator's signed Revoke cuts as a file at the gateway, also what an earlier run of its worker and "
    "break-glass have admitted, and has no expiry.",
)
DISK_FULL = Row(
    by=FAULTS,
    attack="The disk of a manager is full, or its memory damaged.",
    prevention="A revocation is in force all the same, and a damaged memory stops the worker instead of being taken "
    "for an empty one.",
)
GATEWAY_DISK = Row(
    by=FAULTS,
    attack="The disk of a gateway is full, or hangs.",
    prevention="What takes away and renewals wait for no disk, and nobody new is admitted until it takes their floors.",
)
FLOORS_LOST = Row(
    by=FAULTS,
    attack="A gateway's floors are lost, damaged, or an older copy.",
    prevention="Its worker does not start without the file, and a count of changes that has fallen is an alarm "
    "(`floors-lost`) with its first report.",
    left="what it has forgotten the bus can show it, until [another gateway's floors]"
    "(gateway.md#what-a-gateway-remembers) are imported.",
)
NGINX_FULL = Row(
    by=FAULTS,
    attack="nginx has no room for more admissions, lost them, or holds some that nobody signed.",
    prevention="Withdrawals go through, nobody is evicted, and the worker makes its contents what was signed.",
)
MESSAGE_POISONED = Row(
    by=FAULTS,
    attack="A message makes every worker fail.",
    prevention="It is put aside with an event, in the room of its sender, and an operator tries it again or drops it.",
)
POLICY_GAP = Row(
    by=FAULTS,
    attack="A policy has a gap: it is empty, has an unknown key, hides every path, lacks a document or is older.",
    prevention="It is refused at load, with its line, and what was in force stays.",
)
