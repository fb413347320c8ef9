// The gateway worker's API to the dictionary, on a unix socket; and its public health check.

import clock from 'clock.js';

const EPOCH = 'epoch';
const EPOCH_LIFE_MS = 30 * 24 * 3600 * 1000;
const KEPT = 'kept';
const KEY = /^(?:cert|host)\.[0-9a-f]{2,40}$/;

// Each lifetime of the shared memory has its own epoch: a worker that sees a new one must load everything again.
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

// Requested by the worker every second; the public health check reports whether it still is.
function health(r) {
    const zone = ngx.shared.admissions;
    // In a zone of its own: `admissions` may be full.
    ngx.shared.worker.set(KEPT, '');
    answer(r, 200, { epoch: epoch(), entries: zone.size(), free: zone.freeSpace() });
}

// For the public health check: whether a gateway worker keeps this dictionary. A variable, since js_content would read the
// request's body before it answers.
function kept() {
    return ngx.shared.worker.has(KEPT) ? '1' : '';
}

// What was refused since the last request.
function refusals(r) {
    const zone = ngx.shared.refusals;
    const found = [];
    zone.keys(1000).forEach((key) => {
        // Only the one that removes it reports it: another of nginx's workers may get the same request.
        const times = zone.get(key);
        if (times !== undefined && zone.delete(key)) {
            const who = JSON.parse(key);
            found.push({ verdict: who[0], identity: who[1], serial: who[2], times });
        }
    });
    answer(r, 200, { refusals: found });
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
        if (KEY.test(item[0])) {
            found[item[0]] = item[1];
        }
    });
    answer(r, 200, { epoch: epoch(), entries: found });
}

// The body of a change, or undefined once it has been answered: its epoch must be this memory's.
function meant(r) {
    const body = JSON.parse(r.requestText);
    if (body.epoch === epoch()) {
        return body;
    }
    answer(r, 409, { error: 'another epoch' });
    return undefined;
}

// { epoch, entries: [{ key, since, until, sequence, value }] }: Unix seconds, turned into a timeout here, so that no delay on
// the way makes a lease longer; nor does a clock here that is behind the worker's: none is held for longer than its span.
function put(r) {
    const body = meant(r);
    if (body === undefined) {
        return;
    }
    const zone = ngx.shared.admissions;
    body.entries.forEach((entry) => {
        if (!KEY.test(entry.key) || typeof entry.value !== 'string' || !(entry.since >= 0) || !(entry.until > 0)
            || !(entry.sequence > 0)) {
            throw new Error('an entry is { key, since, until, sequence, value }');
        }
        const left = Math.min(entry.until * 1000 - Date.now(), (entry.until - entry.since) * 1000);
        if (left < 1 || clock.stale(entry.since)) {
            forget(entry.key);
        } else {
            zone.set(entry.key, entry.value, left);
            ngx.shared.live.set(entry.key, `${entry.sequence} ${entry.since}`, left);
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
        forget(key);
    });
    answer(r, 200, { epoch: body.epoch });
}

// Delete from both zones, first from the one that decides.
function forget(key) {
    ngx.shared.live.delete(key);
    ngx.shared.admissions.delete(key);
}

export default { health, kept, entries, refusals };
