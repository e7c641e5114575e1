"""What a dry run shows of the data: the source, the column chosen, the first documents."""

import itertools

from hsokv_ray.data.plan import ShardPlan
from hsokv_ray.data.reading import ReadCounts, read_in_order

_SHOWN_CHARACTERS = 160


def preview_lines(plan: ShardPlan, *, num_documents: int = 3) -> list[str]:
    """Return text lines on the source and its first documents, in the order of the files.

    Reads as many parts as hold `num_documents` documents. Raises `DataError` as reading does.
    """
    lines = [
        f"source     {plan.uri}",
        f"revision   {plan.revision}",
        f"text       about {plan.num_bytes:,} bytes of {plan.format} in {len(plan.parts):,} parts, "
        f"{plan.num_streams} streams",
    ]
    lines += [f"column     {kind}: {column or 'the whole row as JSON'}" for kind, column in plan.columns.items()]
    lines += _left_out("skipped", plan.skipped_files) + _left_out("bad shards", plan.bad_shards)
    counts = ReadCounts()
    documents = (doc for part in plan.parts for doc in read_in_order(plan, part, split="all", counts=counts))
    for document in itertools.islice(documents, num_documents):
        text = " ".join(document.text[: 2 * _SHOWN_CHARACTERS].split())
        cut = " ..." if len(text) > _SHOWN_CHARACTERS or len(document.text) > 2 * _SHOWN_CHARACTERS else ""
        lines.append(f"document   {document.id} ({len(document.text):,} characters): {text[:_SHOWN_CHARACTERS]}{cut}")
    left_out = {k: v for k, v in counts.to_dict().items() if v and k not in ("documents", "text_bytes")}
    return lines + [f"counted    {name.replace('_', ' ')} {number:,}" for name, number in left_out.items()]


def _left_out(label: str, names: tuple[str, ...]) -> list[str]:
    if not names:
        return []
    return [f"{label:<10} {len(names):,}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"]
