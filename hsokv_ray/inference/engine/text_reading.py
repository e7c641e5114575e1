"""A text on its way into rows, piece by piece, with the marks from which others can read on.

Shapes: N tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch

from hsokv_ray.inference.engine.served import ServedModel
from hsokv_ray.longcontext import prefill
from hsokv_ray.longcontext.cache import RetrievalCache
from hsokv_ray.longcontext.config import Resolved
from hsokv_ray.longcontext.prefill import Reading
from hsokv_ray.longcontext.recorder import Recorder
from hsokv_ray.longcontext.report import Stopwatch
from hsokv_ray.longcontext.row import Row
from hsokv_ray.longcontext.segments import Encoded


class TextReading:
    """Reads ids [N] behind what the rows hold.

    Args:
        recorder: writes what is read as segments; None: nobody will read on from it.
        marks: numbers of tokens, ascending, behind which reading can be taken up.
    """

    def __init__(
        self,
        served: ServedModel,
        rows: list[Row],
        ids: Sequence[int] | np.ndarray,
        recorder: Recorder | None = None,
        marks: Sequence[int] = (),
    ) -> None:
        self.rows = rows
        self._recorder, self._marks = recorder, list(marks)
        cache = RetrievalCache.of([rows])
        self.watch: Stopwatch = cache.watch
        ids_N = torch.as_tensor(np.asarray(ids, dtype=np.int64)).to(served.device)
        self._reading = Reading(served.model, cache, ids_N)

    @property
    def is_recorded(self) -> bool:
        return self._recorder is not None

    @property
    def done(self) -> int:
        """Tokens read so far."""
        return self._reading.done

    @property
    def num_left(self) -> int:
        """Tokens still to read."""
        return self._reading.num_left

    def read(self, piece_tokens: int | None = None) -> int:
        """Read the next piece, of about `piece_tokens` or as suits the machine; return how many it had."""
        ids_T = self._reading.read(piece_tokens, stop_at=self._next_mark)
        self._note(ids_T)
        return len(ids_T)

    def next_piece(self, piece_tokens: int | None = None) -> torch.Tensor:
        """Return the ids [T] that `read` would read."""
        return self._reading.next_piece(piece_tokens, stop_at=self._next_mark)

    @property
    def _next_mark(self) -> int | None:
        return self._marks[0] if self._marks else None

    def _note(self, ids_T: torch.Tensor) -> None:
        if self._recorder is not None:
            self._recorder.note(ids_T.cpu().numpy())
            if self._marks and self.done == self._marks[0]:
                self._recorder.mark(self.rows)
                self._marks.pop(0)

    def cut(self) -> Encoded | None:
        """Return what has been read up to the last mark."""
        return None if self._recorder is None else self._recorder.cut(self.rows)


def read_side_by_side(served: ServedModel, pieces: Sequence[tuple[TextReading, torch.Tensor]]) -> dict[int, Exception]:
    """Read the next piece of each text in one forward pass; return number of the text -> what it raised."""
    errors = prefill.read_side_by_side(served.model, [(text._reading, ids_T) for text, ids_T in pieces])
    for number, (text, ids_T) in enumerate(pieces):
        if number not in errors:
            try:
                text._note(ids_T)
            except Exception as error:  # of its request alone
                errors[number] = error
    return errors


def plain_reading(
    served: ServedModel, ids: Sequence[int] | np.ndarray, recorder: Recorder, settings: Resolved
) -> TextReading:
    """Return the reading of a prompt that is forgotten with its request.

    Args:
        recorder: stands where the prompt begins; what is read is not told to it.
    """
    return TextReading(served, served.rows(recorder, settings), ids)


def recorded_reading(
    served: ServedModel,
    ids: Sequence[int] | np.ndarray,
    recorder: Recorder,
    marks: Sequence[int],
    settings: Resolved,
) -> TextReading:
    """Return the reading of a text whose `marks` others can read on from."""
    rows = recorder.rows()
    for row in rows:
        row.settings = settings
    return TextReading(served, rows, ids, recorder, marks)
