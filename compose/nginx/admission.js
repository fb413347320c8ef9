// Admission at nginx: a request passes only while its certificate and its host session are both in the dictionary, and
// only if one of the application's rules allows it.
//
// The dictionary is kept by the gateway worker, through admin.js. Keys are `cert.<serial>` and `host.<session>`; each
// has a timeout of its own: the end of its lease. The zone `admissions` holds the lease in JSON, the zone `live` only its
// sequence and when it was issued, which is all that most requests have to read.
// Any error in here ends in a refusal. Written for the default njs engine (no for..of), which runs the top of this file
// again for each request: it is kept short.

import hash from 'crypto';
import clock from 'clock.js';

// A request with a body is judged before its body is read, every second meanwhile, and again when all of it is in.
// Nothing of it goes upstream before that. A refused request has its answer before any of its body is read.
// The server speaks HTTP/1 only, where no request has a body without one of these two headers.
function access(r) {
    if (!pass(r)) {
        return undefined;
    }
    const length = r.headersIn['Content-Length'];
    if (!r.headersIn['Transfer-Encoding'] && (length === undefined || length === '0')) {
        return undefined;
    }
    const watching = {};
    watch(r, watching);
    return r.readRequestArrayBuffer().then(() => {
        if (watching.over) {
            r.return(403);
            return;
        }
        clearTimeout(watching.timer);
        pass(r);
    });
}

const WATCH_MS = 1000;

// Look every second whether the request may go on. nginx closes the connection of one that throws here, with the next byte
// of its body or after client_body_timeout.
function watch(r, watching) {
    watching.timer = setTimeout(() => {
        const end = whyEnd(r, r.variables);
        if (end !== undefined) {
            watching.over = true;
            refuse(r, end);
            throw new Error(end);
        }
        watch(r, watching);
    }, WATCH_MS);
}

// Why a request whose body is still on its way ends here, or undefined.
function whyEnd(r, v) {
    if (+v.request_time > +v.attestgate_body_s) {
        return 'cut: body took too long';
    }
    return judge(r, v) === 'admitted' ? undefined : 'cut: no longer admitted';
}

// The certificate under which a request with a large body counts: none, if the request is not admitted.
function uploader(r) {
    try {
        return judge(r, r.variables) === 'admitted' ? r.variables.ssl_client_serial : '';
    } catch (e) {
        r.error(`admission: ${e.message}`);
        return '';
    }
}

function pass(r) {
    let verdict = 'fault';
    try {
        verdict = judge(r, r.variables);
    } catch (e) {
        r.error(`admission: ${e.message}`);
    }
    if (verdict === 'admitted') {
        r.variables.attestgate_verdict = verdict;
        return true;
    }
    refuse(r, verdict);
    r.return(403);
    return false;
}

// The verdict on a request. The identity is set in the variables as soon as it is known, so that refusals are logged
// with it too.
function judge(r, v) {
    const who = identified(v);
    return typeof who === 'string' ? who : judged(r, v, who);
}

// Who sends a request, if admitted; otherwise why not.
function identified(v) {
    let who = remembered(v);
    if (who === undefined || current(who[KEY]) !== who[LEASE]) {
        if (v.ssl_client_verify !== 'SUCCESS') {
            return 'no certificate';
        }
        who = look(v);
        if (typeof who === 'string') {
            return who;
        }
    }
    v.attestgate_identity = who[IDENTITY];
    return current(who[HOST_KEY]) === undefined ? 'host not trusted' : who;
}

// `SEQUENCE SINCE` of the lease under a key; undefined if there is none, or it is stale.
function current(key) {
    const lease = ngx.shared.live.get(key);
    return lease === undefined || clock.stale(+lease.slice(lease.indexOf(' '))) ? undefined : lease;
}

// The verdict on a request of this client's.
function judged(r, v, who) {
    v.attestgate_key = who[KEY];
    v.attestgate_host_key = who[HOST_KEY];
    v.attestgate_integrity = who[INTEGRITY];
    v.attestgate_marks = who[MARKS];
    const method = r.method;
    if (method === 'CONNECT' || method === 'TRACE') {
        return 'method not allowed';
    }
    // Not h2c, whose requests would go unchecked. WebSockets go to the relay, which closes them with their admission.
    if (v.http_upgrade && (v.attestgate_upstream !== 'relay' || method !== 'GET')) {
        return 'upgrade not allowed';
    }
    return permitted(who, method, v.request_uri);
}

// What is cached of a connection, one line each; the rules follow. The certificate, which is long, is kept separately.
// Without session reuse and renegotiation it cannot change, and no number of a connection comes twice. A newer lease has
// another sequence. No field can hold a line break (schemas/admission.py). A sequence is the revision of a session's
// record, or for break-glass a Unix second: far below 2^53, so it is exact as a number.
const KEY = 0, LEASE = 1, HOST_KEY = 2, IDENTITY = 3, INTEGRITY = 4, MARKS = 5, RULES = 6;

// What is cached of a connection, its certificate put into the variable; undefined if either was evicted.
function remembered(v) {
    const known = ngx.shared.connections.get(v.connection);
    const certificate = ngx.shared.connections.get(`${v.connection} certificate`);
    if (known === undefined || certificate === undefined) {
        return undefined;
    }
    v.attestgate_certificate = certificate;
    return known.split('\n');
}

// Look up a connection's certificate, and cache it; or why it does not pass.
function look(v) {
    const key = `cert.${v.ssl_client_serial.toLowerCase()}`;
    const text = ngx.shared.admissions.get(key);
    if (text === undefined || current(key) === undefined) {
        return 'not admitted';
    }
    const lease = JSON.parse(text);
    // PEM without its first and last line is the DER in base64.
    const base64 = v.ssl_client_raw_cert.trim().split('\n').slice(1, -1).join('');
    const digest = hash.createHash('sha256').update(Buffer.from(base64, 'base64')).digest('hex');
    if (lease.kind !== 'cert' || lease.sha256 !== digest) {
        return 'other certificate';
    }
    const who = [key, `${lease.sequence} ${lease.since}`, lease.host_key, lease.identity, lease.integrity, lease.marks];
    const known = who.concat(lease.allow);
    v.attestgate_certificate = `:${base64}:`;
    ngx.shared.connections.set(`${v.connection} certificate`, v.attestgate_certificate);
    ngx.shared.connections.set(v.connection, known.join('\n'));
    return known;
}

// Whether a rule allows the request. nginx sends the target upstream as received, so it is checked as received, and
// only in the one spelling that every server reads alike: no empty segment, none that begins with a dot, no `;`, no
// backslash, and nothing escaped but what has to be.
function permitted(who, method, target) {
    const end = target.indexOf('?');
    const path = end < 0 ? target : target.slice(0, end);
    const plain = /^\/(?:(?![.\/])[\w.~!$&'()*+,=:@-]*(?:%(?:2[0-246-9a-c]|3[ace]|40|5[bde]|60|7[b-d])[\w.~!$&'()*+,=:@-]*)*(?:\/|$))*$/i;
    if (!plain.test(path)) {
        return 'target not in plain form';
    }
    for (let i = RULES; i < who.length; i++) {
        if (allows(who[i], method, path)) {
            return 'admitted';
        }
    }
    return `no rule allows it: ${who.slice(RULES).join('; ') || 'there is none'}`;
}

// A rule is `METHODS PATH` (schemas/admission.py): comma-separated methods, or `*`; a path, or a subtree
// that ends in `/**`.
function allows(rule, method, path) {
    const space = rule.indexOf(' ');
    if (rule[0] !== '*' && rule.slice(0, space).split(',').indexOf(method) < 0) {
        return false;
    }
    if (!rule.endsWith('/**')) {
        return path === rule.slice(space + 1);
    }
    // It keeps its last slash, so `/a/**` does not allow `/ab`.
    const below = rule.slice(space + 1, -2);
    return path.startsWith(below) || `${path}/` === below;
}

// For the gateway worker, which reports it: who was refused how often, and why. The oldest are evicted at the limit.
// The content of a certificate from an unknown CA is not repeated.
function count(r, verdict) {
    try {
        const serial = r.variables.ssl_client_verify === 'SUCCESS' ? r.variables.ssl_client_serial : '';
        const key = JSON.stringify([verdict, r.variables.attestgate_identity, serial]);
        ngx.shared.refusals.incr(key, 1, 0);
    } catch (e) {
        r.error(`admission: a refusal is not counted: ${e.message}`);
    }
}

// Response: a stream is cut when its time is over or its admission has ended. A chunk is sent only after this check.
// Without the verdict `admitted` nothing was sent upstream: that is an error page of nginx's own.
function bound(r, data, flags) {
    const v = r.variables;
    if (data.length === 0 || v.attestgate_verdict !== 'admitted') {
        r.sendBuffer(data, flags);
        return;
    }
    if (+v.request_time > +v.attestgate_response_s) {
        v.attestgate_verdict = 'cut: response took too long';
    } else if (current(v.attestgate_key) === undefined || current(v.attestgate_host_key) === undefined) {
        v.attestgate_verdict = 'cut: no longer admitted';
    } else {
        r.sendBuffer(data, flags);
        return;
    }
    throw new Error(v.attestgate_verdict);
}

// The answer to a refused client, whether nginx refused (for an invalid certificate or request) or `access`, which has
// counted it.
function refused(r) {
    if (r.variables.attestgate_verdict === 'not judged') {
        refuse(r, unjudged(r.variables.ssl_client_verify));
    }
    return 'refused\n';
}

// The answer to a client who has too many requests in progress, or whose body would be one too many. nginx has looked at
// nothing else yet: of a client that is not admitted it counts as that. By its method it is not judged, which nginx has
// replaced.
function busy(r) {
    let verdict = 'fault';
    try {
        const who = identified(r.variables);
        verdict = typeof who === 'string' ? who : 'too many at once';
    } catch (e) {
        r.error(`admission: ${e.message}`);
    }
    refuse(r, verdict);
    return 'too many requests at once\n';
}

function refuse(r, verdict) {
    r.variables.attestgate_verdict = verdict;
    count(r, verdict);
}

// Why nginx itself refused; on a connection without TLS there is no certificate to name.
function unjudged(verified) {
    if (verified === 'SUCCESS') {
        return 'request not valid';
    }
    return verified && verified !== 'NONE' ? 'certificate not valid' : 'no certificate';
}

export default { access, bound, busy, refused, uploader };
