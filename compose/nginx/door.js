// The door, before TLS: how fast connections may come, and what was rejected. njs clones this file's globals for every
// connection, and keeps the clone as long as the connection: it is kept short.

// Before their first use: njs 0.9.9 took one that followed `access` for not initialized.
const BURST_PER_ADDRESS_MS = 5000, SELDOM_MS = 1000, LONGEST_WAIT_MS = 2000, CLOCK_MS = 10000, SHARE_OF_OFTEN = 0.2;

// A connection over its address's rate is closed at once; one over the rate of all waits for its turn, if that is soon.
// Addresses that connect seldom have the rate of all to themselves, and do not wait behind those that use their burst up:
// these share a fifth of it, since whatever they do in TLS takes CPU from everybody.
// `limit_conn` has run before, so those that wait are bounded too.
function access(s) {
    const v = s.variables;
    // The address first: connections that it has too many of take nothing from the others' share.
    const early = ahead(s.remoteAddress, +v.attestgate_rate_per_address, BURST_PER_ADDRESS_MS);
    if (early === undefined) {
        v.attestgate_over = 'rate of one address';
        s.deny();
        return;
    }
    const often = early > SELDOM_MS;
    const rate = often ? v.attestgate_rate * SHARE_OF_OFTEN : +v.attestgate_rate;
    const wait = ahead(often ? 'often' : 'seldom', rate, LONGEST_WAIT_MS);
    if (wait === undefined) {
        v.attestgate_over = 'rate';
        s.deny();
    } else if (wait > 0) {
        setTimeout(() => s.decline(), wait);
    } else {
        s.decline();
    }
}

// By how many milliseconds one more comes earlier than `rate` per second has it, or undefined if by more than `most`: then
// it does not count (GCRA: the leaky bucket as one number, the Unix time in milliseconds at which it is empty). nginx's
// processes add to it atomically; resetting an empty one is not atomic, and can lose a connection of each process.
function ahead(key, rate, most) {
    const rates = ngx.shared.rates;
    const each = 1000 / rate, now = Date.now();
    const early = rates.incr(key, each, now) - each - now;
    // Earlier than anything can be: the clock was set back.
    if (early < 0 || early > most + CLOCK_MS) {
        rates.set(key, now + each);
        return 0;
    }
    if (early > most) {
        rates.incr(key, -each);
        return undefined;
    }
    return early;
}

// For the log of rejected connections: how many from this address were rejected since its last line, if a line is due;
// otherwise ''. At most one line per address and second, so that a flood does not fill the disk. nginx evaluates it once for
// each rejected connection, so they are counted here.
function due(s) {
    ngx.shared.rejections.incr(`${s.variables.server_port} ${s.variables.attestgate_over}`, 1, 0);
    const address = s.remoteAddress;
    ngx.shared.rejected.incr(address, 1, 0);
    return ngx.shared.logged.add(address, '') ? String(taken(ngx.shared.rejected, address) || '') : '';
}

// For the gateway worker, on a socket of its own: what was rejected since the last connection to it.
function rejections() {
    const zone = ngx.shared.rejections;
    const found = zone.keys().map((key) => {
        const space = key.indexOf(' ');
        return { port: +key.slice(0, space), limit: key.slice(space + 1), times: taken(zone, key) };
    });
    return JSON.stringify({ rejections: found.filter((item) => item.times > 0) });
}

// Take what was counted: what another process of nginx adds meanwhile stays.
function taken(zone, key) {
    const times = zone.get(key) || 0;
    zone.incr(key, -times, 0);
    return times;
}

export default { access, due, rejections };
