"""The FAISS indexes of sealed segments: which kind, how it is built, and a read-only one that is searched.

    kind = choose_kind("auto", num_rows=38_363, dim=384)              # "ivf_sq8"
    save_index(build_index(vectors, kind, "cosine"), path)
    index = OpenIndex.from_file(path)                                # mapped, nothing is loaded
    scores, positions = index.search(queries, 10, allowed=None)

Every kind keeps the original vectors: approximate kinds re-score what they find with them, so that a score is exact
even where a hit may be missed. A search never returns fewer than min(top_k, allowed rows) hits: what an index does not
find is found by exact search.
"""

import math
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from hsokv_ray.errors import StoreError
from hsokv_ray.memory.stores.config import FaissIndex
from hsokv_ray.memory.stores.lsm.allowed import Allowed, as_allowed
from hsokv_ray.memory.stores.lsm.exact import has_gaps, keep_allowed, none_found, search_exact, to_scores
from hsokv_ray.memory.stores.lsm.lists import InvertedLists
from hsokv_ray.memory.stores.types import Metric

Kind = Literal["flat", "ivf_sq8", "rabitq", "ivfpq", "hnsw"]

_faiss: Any = faiss
"""For what FAISS's type stubs leave out."""

AUTO_ROWS = 20_000
"""Rows from which `auto` builds an index: exact search of fewer takes about a millisecond."""
HNSW_ROWS = 1024
"""Rows from which HNSW is built."""
ROWS_PER_LIST = 39
"""FAISS's own lower bound on training rows per list."""
SAMPLE_PER_LIST = 40
TRAINING_ROUNDS = 5
"""More rows per list or more rounds change recall by less than 0.003 and multiply the time."""
IVF_ROWS = 128 * ROWS_PER_LIST
"""Rows from which IVF is built: with fewer than 128 lists a search would look at a third of the rows."""
CODED_DIM = 64
"""Below so many dimensions a few bits for each tell too little: RaBitQ and PQ become SQ8."""
NPROBE_FACTOR = 3.25
"""Lists searched, as a multiple of sqrt(nlist). On real sentence vectors the lists that hold 96 % of the ten nearest
are 2.5 sqrt(nlist), at 9,000 rows as at 37,000."""
CANDIDATES = {"ivf_sq8": 2, "rabitq": 16, "ivfpq": 16}
"""Candidates re-scored exactly, as a multiple of top_k, of each kind with inverted lists."""
FEWEST_CANDIDATES = 32
"""Candidates re-scored at least: a small top_k is no reason to miss."""
EXACT_ROWS = 4096
"""A filter that leaves at most so many rows is answered by comparing with all of them."""
MOSTLY_ALLOWED = 0.95
"""Share of rows above which a filter is little else than deleted rows: it hardly changes which lists are searched."""
HNSW_NEIGHBOURS = 32
EF_CONSTRUCTION = 80
EF_SEARCH = 64


def choose_kind(asked: FaissIndex, num_rows: int, dim: int) -> Kind:
    """Return the index that a segment of `num_rows` vectors gets where `asked` was configured."""
    if asked == "auto":
        asked = "ivf_sq8" if num_rows >= AUTO_ROWS else "flat"
    if asked == "hnsw":
        return "hnsw" if num_rows >= HNSW_ROWS else "flat"
    if num_rows < IVF_ROWS:
        return "flat"
    return "ivf_sq8" if dim < CODED_DIM else asked


def choose_nlist(num_rows: int) -> int:
    """Return the number of inverted lists: about 4 sqrt(num_rows), with at least 39 rows to train each."""
    return max(1, min(int(4 * math.sqrt(num_rows)), num_rows // ROWS_PER_LIST))


def build_index(vectors: np.ndarray, kind: Kind, metric: Metric, *, seed: int = 0) -> "faiss.Index":
    """Return a FAISS index of `vectors` (float32 [n, d]) whose ids are their positions; the same for the same input."""
    vectors = np.ascontiguousarray(vectors, np.float32)
    num_rows, dim = vectors.shape
    faiss_metric = faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT
    if kind == "flat":
        index: Any = faiss.IndexFlat(dim, faiss_metric)
    elif kind == "hnsw":
        index = _faiss.IndexHNSWFlat(dim, HNSW_NEIGHBOURS, faiss_metric)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        index.hnsw.rng = _faiss.RandomGenerator(seed)
    else:
        return _build_ivf(vectors, kind, faiss_metric, seed)
    index.add(vectors)
    return index


def _build_ivf(vectors: np.ndarray, kind: Kind, faiss_metric: int, seed: int) -> "faiss.Index":
    num_rows, dim = vectors.shape
    nlist = choose_nlist(num_rows)
    assert num_rows >= ROWS_PER_LIST * nlist, (num_rows, nlist)
    index: Any = faiss.index_factory(dim, _recipe(kind, nlist, dim), faiss_metric)
    ivf, _ = _ivf_of(index)
    for clustering in (ivf.cp, ivf.pq.cp) if kind == "ivfpq" else (ivf.cp,):
        clustering.seed = seed
        clustering.min_points_per_centroid = 1
    ivf.cp.niter = TRAINING_ROUNDS
    ivf.cp.max_points_per_centroid = SAMPLE_PER_LIST
    index.train(_sample(vectors, SAMPLE_PER_LIST * nlist, seed))
    index.add(vectors)
    return index


def _recipe(kind: Kind, nlist: int, dim: int) -> str:
    """Return the text that FAISS makes the index from.

    The coarser codes want dimensions that matter alike, which a random rotation gives: on vectors whose first
    dimensions vary most, recall of RaBitQ is 0.90 without and 0.99 with it.
    """
    codes = {
        "ivf_sq8": f"IVF{nlist},SQ8",
        "rabitq": f"RR{dim},IVF{nlist},RaBitQ",
        "ivfpq": f"RR{dim},IVF{nlist},PQ{_num_subquantizers(dim)}x4fs",
    }[kind]
    return codes + ",RFlat"


def _ivf_of(index: Any) -> tuple[Any, Any | None]:
    """Return the part with inverted lists of an index made by `_recipe`, and the rotation before it."""
    inner = _faiss.downcast_index(index.base_index)
    if not isinstance(inner, _faiss.IndexPreTransform):
        return inner, None
    return _faiss.downcast_index(inner.index), _faiss.downcast_VectorTransform(inner.chain.at(0))


def _sample(vectors: np.ndarray, size: int, seed: int) -> np.ndarray:
    if size >= len(vectors):
        return vectors
    chosen = np.random.default_rng(seed).choice(len(vectors), size, replace=False)
    return vectors[np.sort(chosen)]


def _num_subquantizers(dim: int) -> int:
    """Return how many parts a vector is cut into, of four dimensions or what divides `dim`."""
    return next(dim // size for size in (4, 3, 2, 1) if dim % size == 0)


def save_index(index: "faiss.Index", path: str | Path) -> None:
    """Write `index` to a file that `OpenIndex.from_file` maps. Raises `OSError`: no room."""
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(f"{path}: cannot be written ({str(error).splitlines()[0]})") from None


class OpenIndex:
    """A saved index, mapped without copying. It can only be read; several threads may.

    There is deliberately no way to add or remove: FAISS ends the process when a mapped index is written to.
    """

    def __init__(self, index: Any, keep: tuple[Any, ...] = ()) -> None:
        self._index = index
        self._keep = keep
        self.kind: Kind = _kind_of(index)
        self.metric: Metric = "l2" if index.metric_type == faiss.METRIC_L2 else "dot"
        """l2, or dot, which on vectors of unit length is cosine."""
        self.dim: int = index.d
        self.num_rows: int = index.ntotal
        self._lists = InvertedLists(*_ivf_of(index)) if self.kind in CANDIDATES else None
        self._matrix = _originals(index, self.kind)
        self._defaults: dict[int, Any] = {}

    @classmethod
    def from_file(cls, path: str | Path) -> "OpenIndex":
        """Map a file of `save_index`. Raises `StoreError`: not an index, or damaged."""
        try:
            return cls(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))
        except RuntimeError as error:
            raise _unreadable(str(path), error) from None

    @classmethod
    def from_buffer(cls, buffer: Any) -> "OpenIndex":
        """Use the bytes of such a file where they are. `buffer`: bytes, or anything with the buffer protocol.

        Raises `StoreError`: not an index, or damaged.
        """
        data = np.frombuffer(buffer, np.uint8)
        reader = _faiss.ZeroCopyIOReader(faiss.swig_ptr(data), len(data))
        try:
            return cls(faiss.read_index(reader, faiss.IO_FLAG_MMAP_IFC), (buffer, data, reader))
        except RuntimeError as error:
            raise _unreadable("index in memory", error) from None

    def search(
        self, queries: np.ndarray, top_k: int, allowed: Allowed | np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores float32 [n, k] and positions int64 [n, k] of the nearest allowed rows, nearest first.

        Args:
            queries: float32 [n, d], contiguous.
            top_k: k is the smaller of this and num_rows.
            allowed: bool [num_rows] or an `Allowed`; where fewer than k rows are, -1 and -inf fill up.
        """
        allowed = as_allowed(allowed, self.num_rows)
        if self._wants_exact(top_k, allowed):
            return search_exact(queries, self._matrix, self.metric, top_k, allowed)
        if not len(queries):
            return none_found(0, top_k)
        if allowed is None:
            scores, positions = self._search_index(queries, top_k, self._default_parameters(top_k))
        elif self.kind == "hnsw":
            scores, positions = self._search_graph(queries, top_k, allowed)
        else:
            scores, positions = self._search_lists(queries, top_k, allowed)
        if has_gaps(positions):
            short = np.flatnonzero(positions[:, -1] < 0)
            scores[short], positions[short] = search_exact(queries[short], self._matrix, self.metric, top_k, allowed)
        return scores, positions

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """Return the original rows at `positions`, float32 [m, d], as a copy."""
        return self._matrix[positions]

    def _wants_exact(self, top_k: int, allowed: Allowed | None) -> bool:
        """Whether comparing with all allowed rows is cheaper, or the index would look at most of them anyway."""
        if self.kind == "flat":
            return True
        if allowed is None:
            return self.num_rows <= 8 * top_k
        cheap = self.num_rows // 10 if self._lists is None else self._compared(top_k)
        return allowed.count <= max(EXACT_ROWS, 8 * top_k, cheap)

    def _search_graph(self, queries: np.ndarray, top_k: int, allowed: Allowed) -> tuple[np.ndarray, np.ndarray]:
        """Search for more than top_k of all rows and keep those allowed; -1 where they are too few.

        FAISS's own filter of HNSW ends its walk among rows that are not allowed: recall@10 is 0.5 to 0.7 where a filter
        goes with the subject of real sentence vectors.
        """
        fetch = 2 * top_k * self.num_rows // allowed.count + top_k
        scores, positions = self._search_index(queries, fetch, self._default_parameters(fetch))
        return keep_allowed(scores, positions, top_k, allowed)

    def _search_lists(self, queries: np.ndarray, top_k: int, allowed: Allowed) -> tuple[np.ndarray, np.ndarray]:
        """Search as many lists for each query as hold enough allowed rows; -1 where those would be most lists."""
        assert self._lists is not None
        most = self._lists.nlist // 2
        if allowed.count >= MOSTLY_ALLOWED * self.num_rows:
            needed = np.full(len(queries), min(self._nprobe(top_k) * self.num_rows // allowed.count, most))
        else:
            needed = self._lists.needed(queries, allowed, self._compared(top_k))
        # few different numbers of lists: each is a search of its own
        rounded = np.where(needed > most, 0, np.minimum(2 ** np.ceil(np.log2(needed)).astype(np.int64), most))
        scores, positions = none_found(len(queries), top_k)
        for nprobe in np.unique(rounded[rounded > 0]).tolist():
            rows = np.flatnonzero(rounded == nprobe)
            parameters = self._parameters(top_k, nprobe, allowed.selector)
            scores[rows], positions[rows] = self._search_index(queries[rows], top_k, parameters)
        return scores, positions

    def _nprobe(self, top_k: int) -> int:
        """Lists that an unfiltered search looks at: the default's number, or enough for a large top_k."""
        assert self._lists is not None
        nlist = self._lists.nlist
        return min(nlist, max(math.ceil(NPROBE_FACTOR * math.sqrt(nlist)), 16 * top_k * nlist // self.num_rows))

    def _compared(self, top_k: int) -> int:
        """Allowed rows that a filtered search compares: twice as many as an unfiltered one."""
        assert self._lists is not None
        return 2 * self._nprobe(top_k) * self.num_rows // self._lists.nlist

    def _search_index(self, queries: np.ndarray, k: int, parameters: Any) -> tuple[np.ndarray, np.ndarray]:
        num_queries = len(queries)
        distances, positions = np.empty((num_queries, k), np.float32), np.empty((num_queries, k), np.int64)
        pointer = faiss.swig_ptr
        self._index.search_c(num_queries, pointer(queries), k, pointer(distances), pointer(positions), parameters)
        return to_scores(distances, positions, self.metric), positions

    def _default_parameters(self, top_k: int) -> Any:
        found = self._defaults.get(top_k)
        if found is None:
            if len(self._defaults) >= 64:
                self._defaults.clear()
            nprobe = 0 if self._lists is None else self._nprobe(top_k)
            found = self._defaults[top_k] = self._parameters(top_k, nprobe, None)
        return found

    def _parameters(self, top_k: int, nprobe: int, selector: Any | None) -> Any:
        if self.kind == "hnsw":
            return _faiss.SearchParametersHNSW(efSearch=max(EF_SEARCH, 2 * top_k))
        base = _faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
        if self.kind != "ivf_sq8":
            base = _faiss.SearchParametersPreTransform(index_params=base)
        candidates = max(CANDIDATES[self.kind], -(-FEWEST_CANDIDATES // top_k))
        return _faiss.IndexRefineSearchParameters(k_factor=candidates, base_index_params=base)


def _kind_of(index: Any) -> Kind:
    if isinstance(index, faiss.IndexHNSWFlat):
        return "hnsw"
    if isinstance(index, faiss.IndexFlat):
        return "flat"
    inner = _ivf_of(index)[0] if isinstance(index, faiss.IndexRefineFlat) else None
    kinds: dict[Any, Kind] = {
        faiss.IndexIVFScalarQuantizer: "ivf_sq8",
        faiss.IndexIVFRaBitQ: "rabitq",
        faiss.IndexIVFPQFastScan: "ivfpq",
    }
    if type(inner) not in kinds:
        raise StoreError(f"an index of type {type(index).__name__} was not written by hsokv_ray")
    return kinds[type(inner)]


def _originals(index: Any, kind: Kind) -> np.ndarray:
    """Return the vectors that were added, float32 [n, d], as a read-only view of the index's own memory."""
    holder = {"flat": index, "hnsw": getattr(index, "storage", None)}.get(kind, getattr(index, "refine_index", None))
    flat = _faiss.downcast_index(holder)
    if not index.ntotal:
        return np.zeros((0, index.d), np.float32)
    matrix = faiss.rev_swig_ptr(flat.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    matrix.flags.writeable = False
    return matrix


def _unreadable(name: str, error: Exception) -> StoreError:
    return StoreError(f"{name}: is not a FAISS index or is damaged ({str(error).splitlines()[0]})")
