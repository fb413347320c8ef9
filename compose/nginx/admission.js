// Admission at nginx: a request passes only while its certificate and its host session are both in the dictionary.
//
// The dictionary (js_shared_dict_zone `admissions`) is kept by the gateway worker through a unix socket. Keys are
// `cert.<serial>` and `host.<session>`; values are JSON text; each has a timeout of its own: the end of its lease.
// Whatever goes wrong in here ends in a refusal. Written for the default njs engine (no for..of).

import hash from 'crypto';

const EPOCH = 'epoch';
const EPOCH_LIFE_MS = 30 * 24 * 3600 * 1000;
const KEY = /^(?:cert|host)\.[0-9a-f]{2,40}$/;

// access phase

// A request with a body is judged twice: before nginx reads a byte of it for a stranger, and again when all of it is
// in, since a body may take its time and the admission may have ended meanwhile.
function access(r) {
    if (!pass(r)) {
        return undefined;
    }
    const length = r.headersIn['Content-Length'];
    if (!r.headersIn['Transfer-Encoding'] && (length === undefined || length === '0')) {
        return undefined;
    }
    return r.readRequestArrayBuffer().then(() => { pass(r); });
}

function pass(r) {
    let verdict = 'fault';
    try {
        verdict = judge(r);
    } catch (e) {
        r.error(`admission: ${e.message}`);
    }
    r.variables.attestgate_verdict = verdict;
    if (verdict !== 'admitted') {
        r.return(403);
        return false;
    }
    return true;
}

// The verdict on a request. Once the certificate is known to be the leased one, who it is goes into the variables, so
// that the log says it for a refusal too.
function judge(r) {
    const v = r.variables;
    if (v.ssl_client_verify !== 'SUCCESS') {
        return 'no certificate';
    }
    // PEM without its first and last line is the DER in base64.
    const base64 = v.ssl_client_raw_cert.trim().split('\n').slice(1, -1).join('');
    v.attestgate_certificate = `:${base64}:`;
    v.attestgate_key = `cert.${v.ssl_client_serial.toLowerCase()}`;
    const text = ngx.shared.admissions.get(v.attestgate_key);
    if (text === undefined) {
        return 'not admitted';
    }
    const lease = JSON.parse(text);
    const digest = hash.createHash('sha256').update(Buffer.from(base64, 'base64')).digest('hex');
    if (lease.kind !== 'cert' || lease.sha256 !== digest) {
        return 'other certificate';
    }
    v.attestgate_identity = lease.identity;
    v.attestgate_integrity = lease.integrity;
    v.attestgate_marks = [lease.simulated ? 'simulated' : '', lease.observe_only ? 'observe-only' : '']
        .filter((mark) => mark).join(', ');
    v.attestgate_host_key = `host.${lease.host_session}`;
    if (!ngx.shared.admissions.has(v.attestgate_host_key)) {
        return 'host not trusted';
    }
    if (r.headersIn.Upgrade !== undefined || r.method === 'CONNECT' || r.method === 'TRACE') {
        return 'method not allowed';
    }
    return 'admitted';
}

// Response: a stream is cut when its time is over or its admission has ended. A piece goes out only after this look.
// Without the verdict `admitted` nothing was asked of upstream: that is an error page of nginx's own.
function bound(r, data, flags) {
    const v = r.variables;
    const zone = ngx.shared.admissions;
    if (v.attestgate_verdict !== 'admitted') {
        r.sendBuffer(data, flags);
        return;
    }
    if (Number(v.request_time) > Number(v.attestgate_response_s)) {
        v.attestgate_verdict = 'cut: response took too long';
    } else if (!zone.has(v.attestgate_key) || !zone.has(v.attestgate_host_key)) {
        v.attestgate_verdict = 'cut: no longer admitted';
    } else {
        r.sendBuffer(data, flags);
        return;
    }
    throw new Error(v.attestgate_verdict);
}

// The worker's side (unix socket)

// One life of the shared memory has one epoch: a worker that sees another one knows that it must load everything.
function epoch() {
    const zone = ngx.shared.admissions;
    const fresh = Buffer.from(crypto.getRandomValues(new Uint8Array(16))).toString('hex');
    zone.add(EPOCH, fresh, EPOCH_LIFE_MS);
    return zone.get(EPOCH);
}

function answer(r, status, value) {
    r.headersOut['Content-Type'] = 'application/json';
    r.return(status, JSON.stringify(value));
}

function health(r) {
    const zone = ngx.shared.admissions;
    answer(r, 200, { epoch: epoch(), entries: zone.size(), free: zone.freeSpace() });
}

function entries(r) {
    const change = { GET: list, PUT: put, DELETE: remove }[r.method];
    if (change === undefined) {
        answer(r, 405, { error: 'GET, PUT or DELETE' });
        return;
    }
    try {
        change(r);
    } catch (e) {
        const full = e.name === 'SharedMemoryError';
        answer(r, full ? 507 : 400, { error: full ? 'the zone is full' : e.message });
    }
}

function list(r) {
    const zone = ngx.shared.admissions;
    const found = {};
    zone.items(zone.size() + 1).forEach((item) => {
        if (item[0] !== EPOCH) {
            found[item[0]] = item[1];
        }
    });
    answer(r, 200, { epoch: epoch(), entries: found });
}

// The body of a change, or undefined after an answer: it must be meant for this life of the memory.
function meant(r) {
    const body = JSON.parse(r.requestText);
    if (body.epoch === epoch()) {
        return body;
    }
    answer(r, 409, { error: 'another epoch' });
    return undefined;
}

// { epoch, entries: [{ key, until, value }] }: `until` in Unix seconds, turned into a timeout here, so that no delay on
// the way makes a lease longer.
function put(r) {
    const body = meant(r);
    if (body === undefined) {
        return;
    }
    const zone = ngx.shared.admissions;
    body.entries.forEach((entry) => {
        if (!KEY.test(entry.key) || typeof entry.value !== 'string' || typeof entry.until !== 'number') {
            throw new Error('an entry is { key, until, value }');
        }
        const left = entry.until * 1000 - Date.now();
        if (left < 1) {
            zone.delete(entry.key);
        } else {
            zone.set(entry.key, entry.value, left);
        }
    });
    answer(r, 200, { epoch: body.epoch });
}

// { epoch, keys: [...] }
function remove(r) {
    const body = meant(r);
    if (body === undefined) {
        return;
    }
    body.keys.forEach((key) => {
        if (!KEY.test(key)) {
            throw new Error('not a key');
        }
        ngx.shared.admissions.delete(key);
    });
    answer(r, 200, { epoch: body.epoch });
}

export default { access, bound, health, entries };
