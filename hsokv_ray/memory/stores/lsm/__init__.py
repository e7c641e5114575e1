"""FAISS as a log-structured store: exact growing rows in RAM, sealed and indexed segments on disk, views to query.

A folder holds a log, segments and a manifest. Rows are appended to the log and to a growing part; a full growing part
is sealed into an immutable segment that is mapped, not loaded. Deleting clears a bit. A `View` is a picture of all of
it that does not change: queries run on a view and never wait for writers.

Within a segment FAISS's ids are the positions 0..n-1 of its rows, sorted by id. Nothing is ever removed from an index
and no index maps ids, so that no search can return a wrong one.
"""
