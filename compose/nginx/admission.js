// Admission at nginx: a request passes only while its certificate and its host session are both in the dictionary, and
// only if one of the application's rules allows it.
//
// The dictionary (js_shared_dict_zone `admissions`) is kept by the gateway worker, through admin.js. Keys are
// `cert.<serial>` and `host.<session>`; values are JSON text; each has a timeout of its own: the end of its lease.
// Whatever goes wrong in here ends in a refusal. Written for the default njs engine (no for..of), which runs the top of
// this file anew for each request: it is kept short.

import hash from 'crypto';

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
        verdict = judge(r, r.variables);
    } catch (e) {
        r.error(`admission: ${e.message}`);
    }
    r.variables.attestgate_verdict = verdict;
    if (verdict === 'admitted') {
        return true;
    }
    count(r, verdict);
    r.return(403);
    return false;
}

// The verdict on a request. Once the certificate is known to be the leased one, who it is goes into the variables, so
// that the log says it for a refusal too.
function judge(r, v) {
    if (v.ssl_client_verify !== 'SUCCESS') {
        return 'no certificate';
    }
    const zone = ngx.shared.admissions;
    const certificate = presented(v);
    const key = `cert.${v.ssl_client_serial.toLowerCase()}`;
    const text = zone.get(key);
    if (text === undefined) {
        return 'not admitted';
    }
    const lease = JSON.parse(text);
    if (lease.kind !== 'cert' || certificate.slice(0, 64) !== lease.sha256) {
        return 'other certificate';
    }
    v.attestgate_certificate = certificate.slice(64);
    v.attestgate_key = key;
    v.attestgate_identity = lease.identity;
    v.attestgate_integrity = lease.integrity;
    v.attestgate_marks = lease.marks;
    v.attestgate_host_key = lease.host_key;
    if (!zone.has(lease.host_key)) {
        return 'host not trusted';
    }
    const method = r.method;
    if (r.headersIn.Upgrade !== undefined || method === 'CONNECT' || method === 'TRACE') {
        return 'method not allowed';
    }
    return permitted(lease.allow, method, v.request_uri);
}

// The certificate of this connection: SHA-256 of its DER in hexadecimal, then what RFC 9440 makes of it. Computed once
// a connection: without session reuse and renegotiation it cannot change, and no number of a connection comes twice.
function presented(v) {
    const known = ngx.shared.connections.get(v.connection);
    if (known !== undefined) {
        return known;
    }
    // PEM without its first and last line is the DER in base64.
    const base64 = v.ssl_client_raw_cert.trim().split('\n').slice(1, -1).join('');
    const digest = hash.createHash('sha256').update(Buffer.from(base64, 'base64')).digest('hex');
    const found = `${digest}:${base64}:`;
    ngx.shared.connections.set(v.connection, found);
    return found;
}

// Whether a rule allows the request. What nginx sends upstream is the target as it came, so it is judged as it came,
// and only in the one spelling that every server reads alike: no empty segment, none that begins with a dot, no `;`, no
// backslash, and nothing escaped but what has to be.
function permitted(rules, method, target) {
    const end = target.indexOf('?');
    const path = end < 0 ? target : target.slice(0, end);
    const plain = /^\/(?:(?:[\w~!$&'()*+,=:@-]|%(?:2[0-246-9a-c]|3[ace]|40|5[bde]|60|7[b-d]))(?:[\w.~!$&'()*+,=:@-]|%(?:2[0-246-9a-c]|3[ace]|40|5[bde]|60|7[b-d]))*(?:\/|$))*$/i;
    if (!plain.test(path)) {
        return 'target not in plain form';
    }
    for (let i = 0; i < rules.length; i++) {
        if (allows(rules[i], method, path)) {
            return 'admitted';
        }
    }
    return `no rule allows it: ${rules.join('; ')}`;
}

// A rule is `METHODS PATH` (schemas/admission.py): methods with commas between them, or `*`; a path, or a subtree
// that ends in `/**`.
function allows(rule, method, path) {
    const space = rule.indexOf(' ');
    const methods = rule.slice(0, space);
    if (methods !== '*' && methods.split(',').indexOf(method) < 0) {
        return false;
    }
    const tree = rule.slice(space + 1);
    if (!tree.endsWith('/**')) {
        return path === tree;
    }
    const root = tree.slice(0, -3);
    return path === root || path.startsWith(`${root}/`);
}

// For the gateway worker, which tells of it: how often whom, and why. The oldest give way where there are too many.
function count(r, verdict) {
    try {
        const key = JSON.stringify([verdict, r.variables.attestgate_identity, r.variables.ssl_client_serial || '']);
        ngx.shared.refusals.incr(key, 1, 0);
    } catch (e) {
        r.error(`admission: a refusal is not counted: ${e.message}`);
    }
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

export default { access, bound };
