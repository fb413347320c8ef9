"""The tree against the vectors of Certificate Transparency, and its proofs against every small tree and every lie."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from attestgate.manager.audit.merkle import (
    Frontier,
    consistency_proof,
    goes_on,
    includes,
    inclusion_proof,
    leaf_hash,
    root_of,
)

ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
"""Of certificate-transparency's own test data (transparency-dev/merkle, testonly): by size, from 0."""
LEAVES = [leaf_hash(bytes.fromhex(entry)) for entry in ENTRIES]
OTHER = b"\x01" * 32

sizes = st.integers(1, 70)
many = [leaf_hash(bytes([n])) for n in range(70)]


def test_the_roots_of_certificate_transparency() -> None:
    assert [root_of(LEAVES[:size]).hex() for size in range(9)] == ROOTS


def test_proofs_of_certificate_transparency() -> None:
    """Of leaf 0 in the tree of 8, and from 6 to 8: the paths of the same test data."""
    assert [node.hex()[:8] for node in inclusion_proof(LEAVES, 0)] == ["96a296d2", "5f083f0a", "6b47aaf2"]
    assert [node.hex()[:8] for node in consistency_proof(LEAVES, 6)] == ["0ebc5d34", "ca854ea1", "d37ee418"]


def test_every_proof_of_every_small_tree_holds_and_of_no_other() -> None:
    for size in range(1, 20):
        leaves = many[:size]
        root = root_of(leaves)
        for index in range(size):
            path = inclusion_proof(leaves, index)
            assert includes(leaves[index], index, size, path, root)
            assert not any(includes(leaves[index], other, size, path, root) for other in range(size) if other != index)
        for earlier in range(1, size + 1):
            path = consistency_proof(leaves, earlier)
            assert goes_on(earlier, root_of(leaves[:earlier]), size, root, path)
            assert not goes_on(earlier, OTHER, size, root, path)
            assert not goes_on(earlier, root_of(leaves[:earlier]), size, OTHER, path)


@given(sizes, st.data())
def test_a_proof_with_anything_changed_proves_nothing(size: int, data: st.DataObject) -> None:
    leaves = many[:size]
    index = data.draw(st.integers(0, size - 1))
    path, root = inclusion_proof(leaves, index), root_of(leaves)
    assert not includes(OTHER, index, size, path, root)
    assert not includes(leaves[index], index, size, [*path, OTHER], root)
    assert not includes(leaves[index], size, size, path, root)
    for place in range(len(path)):
        assert not includes(leaves[index], index, size, [*path[:place], OTHER, *path[place + 1 :]], root)
        assert not includes(leaves[index], index, size, path[:place] + path[place + 1 :], root)


@given(sizes, st.data())
def test_no_proof_leads_from_a_tree_that_was_rewritten(size: int, data: st.DataObject) -> None:
    earlier = data.draw(st.integers(1, size))
    changed = data.draw(st.integers(0, earlier - 1))
    rewritten = [*many[:changed], OTHER, *many[changed + 1 : size]]
    path = consistency_proof(rewritten, earlier)
    assert not goes_on(earlier, root_of(many[:earlier]), size, root_of(rewritten), path)


@given(sizes, st.integers(0, 70), st.lists(st.binary(min_size=32, max_size=32), max_size=8))
def test_no_made_up_path_proves_anything(size: int, earlier: int, path: list[bytes]) -> None:
    root = root_of(many[:size])
    assert not includes(OTHER, 0, size, path, root)
    if earlier != size:
        assert not goes_on(earlier, OTHER, size, root, path)


@given(st.integers(0, 70), st.integers(0, 70))
def test_a_frontier_grows_to_the_same_root_in_any_steps(first: int, second: int) -> None:
    first, second = min(first, second), max(first, second)
    grown = Frontier().extended(many[:first]).extended(many[first:second])
    assert (grown.size, grown.root()) == (second, root_of(many[:second]))
    assert len(grown.roots) == second.bit_count()
