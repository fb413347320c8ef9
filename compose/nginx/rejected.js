// The log of rejected connections: at most one line per address and second, so that a flood does not fill the disk.

// How many connections from this address were rejected since its last line, if a line is due; otherwise ''. nginx evaluates
// it once for each rejected connection.
function due(s) {
    const address = s.remoteAddress;
    ngx.shared.rejected.incr(address, 1, 0);
    if (!ngx.shared.logged.add(address, '')) {
        return '';
    }
    const count = ngx.shared.rejected.get(address);
    ngx.shared.rejected.delete(address);
    return String(count);
}

export default { due };
