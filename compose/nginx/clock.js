// Whether an entry of the dictionary is stale: issued further ahead of the clock than two clocks may be apart, because one
// of them was set (schemas/clocks.py). nginx's timeouts are kept by the wall clock too, so after a step back an entry stays
// for longer than its span; it admits nobody meanwhile.

const SKEW_S = 5;

function stale(since) {
    return !(since <= Date.now() / 1000 + SKEW_S);
}

export default { stale };
