"""MemoryConsolidator: moves what matters from episodic to semantic memory, and never loses any of it.

    report = MemoryConsolidator(episodes, facts).run()
    print(report.moved, report.kept, report.failed)

Two phases per batch of groups: the medoid's text is written together with what it stands for; then every record is
fetched by its id and found by its vector. Only the episodes of a record that passes both are deleted. A run that is
broken off anywhere is finished by the next: ids stay, and an episode that a record stands for already is not written
again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hsokv_ray.errors import ConfigError, DataError, StoreError
from hsokv_ray.memory.config import ConsolidationConfig
from hsokv_ray.memory.episodic import Episode, EpisodicMemory
from hsokv_ray.memory.grouping import Group, group_near_duplicates
from hsokv_ray.memory.importance import importance
from hsokv_ray.memory.records import TEXT
from hsokv_ray.memory.semantic import SemanticMemory
from hsokv_ray.memory.stores.types import Hit, Record

KEY = "consolidated"
"""Key of a record's metadata: {represents: [episode ids], variants: [texts other than its own], time_s, uses}."""
_SEARCH_DEPTHS = (10, 1000)


@dataclass
class Consolidated:
    """What a run did."""

    moved: list[str] = field(default_factory=list)
    """Episodes that are in semantic memory now and no longer in episodic memory."""
    kept: list[str] = field(default_factory=list)
    """Episodes below the importance."""
    failed: dict[str, str] = field(default_factory=dict)
    """Episodes that should have moved, with the reason; they are still in episodic memory."""
    groups: list[Group] = field(default_factory=list)
    """What was written: one record per group, under its medoid's id."""


@dataclass(frozen=True)
class _Candidate:
    episode: Episode
    vector: np.ndarray
    hits: list[Hit]


class MemoryConsolidator:
    """Moves episodes of one memory into another.

    Args:
        episodic: episodes without a vector are encoded by `semantic`'s encoder.
        semantic: takes the records; its store's metric is cosine.
        config: importance, similarity and batch size.
        clock: seconds, the same as the episodic memory's; None takes the time of its newest event.
    """

    def __init__(
        self,
        episodic: EpisodicMemory,
        semantic: SemanticMemory,
        config: ConsolidationConfig | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if semantic.store.metric != "cosine":
            raise ConfigError(
                f"consolidation: the semantic store has the metric {semantic.store.metric!r}; near-duplicates and "
                "novelty are cosines: open it with metric cosine"
            )
        self.episodic, self.semantic = episodic, semantic
        self.config = config or ConsolidationConfig()
        self._clock = clock

    def run(self) -> Consolidated:
        """Move what matters; return what happened.

        Raises:
            StoreError: the semantic memory cannot be searched; nothing has changed. What cannot be written or verified
                is in the report.
        """
        report = Consolidated()
        candidates = self._candidates(report)
        settled = {each.episode.id: record for each in candidates if (record := self._stands_for(each)) is not None}
        self._finish(settled, report)
        important = self._important([each for each in candidates if each.episode.id not in settled], report)
        episodes = {each.episode.id: each for each in important}
        vectors = [each.vector for each in important]
        groups = group_near_duplicates(list(episodes), np.stack(vectors), self.config.similarity) if vectors else []
        for start in range(0, len(groups), self.config.batch_size):
            self._move(groups[start : start + self.config.batch_size], episodes, report)
        return report

    def check_integrity(self) -> list[str]:
        """Return what is wrong between the two memories; [] where nothing is.

        An episode that a record stands for already is left from a run that was broken off; the next one removes it.
        """
        found, owner = [], {}
        for record in self.semantic.store.records():
            facts = record.metadata.get(KEY)
            if facts is None:
                continue
            if not isinstance(facts, dict) or record.id not in facts.get("represents", []):
                found.append(f"record {record.id!r} does not represent itself")
                continue
            for id in facts["represents"]:
                if id in owner:
                    found.append(f"episode {id!r} is represented by {owner[id]!r} and {record.id!r}")
                owner[id] = record.id
        left = [each.id for each in self.episodic.recent() if each.id in owner]
        found += [f"episode {id!r} is still in episodic memory beside record {owner[id]!r}" for id in left]
        return found + self.episodic.check_integrity()

    def _candidates(self, report: Consolidated) -> list[_Candidate]:
        episodes = sorted(self.episodic.recent(), key=lambda episode: episode.id)
        vectors = self.episodic.vectors([each.id for each in episodes])
        pairs = []
        for episode, vector in zip(episodes, vectors, strict=True):
            if vector is None and self.semantic.encoder is None:
                report.failed[episode.id] = "it has no vector, and the semantic memory has no encoder"
            else:
                pairs.append((episode, self._encoded(episode) if vector is None else vector))
        if not pairs:
            return []
        hits = self.semantic.store.query(np.stack([vector for _, vector in pairs]), _SEARCH_DEPTHS[0])
        return [_Candidate(episode, vector, near) for (episode, vector), near in zip(pairs, hits, strict=True)]

    def _encoded(self, episode: Episode) -> np.ndarray:
        assert self.semantic.encoder is not None
        vector = np.asarray(self.semantic.encoder([episode.text]), np.float32).reshape(-1)
        return vector / np.linalg.norm(vector)

    def _stands_for(self, each: _Candidate) -> Record | Hit | None:
        """Return the record that an earlier run wrote for the episode, if its text is in there."""
        [own] = self.semantic.store.get([each.episode.id])
        return next((record for record in [own, *each.hits] if record and _holds(record, each.episode)), None)

    def _finish(self, settled: dict[str, Any], report: Consolidated) -> None:
        for id, record in settled.items():
            try:
                [stored] = self.semantic.store.get([record.id])
                if stored is None or not self._is_found(stored.id, stored.vector):
                    raise StoreError(f"record {record.id!r}, which stands for it, is not found by its vector")
            except (StoreError, OSError) as error:
                report.failed[id] = str(error)
                continue
            self.episodic.remove([id])
            report.moved.append(id)

    def _important(self, candidates: list[_Candidate], report: Consolidated) -> list[_Candidate]:
        if not candidates:
            return []
        episodes = [each.episode for each in candidates]
        now = self._clock() if self._clock else max(each.last_used_s for each in episodes)
        scores = importance(
            self.config,
            uses=np.array([each.uses for each in episodes]),
            nearest=np.array([_cosine(each) for each in candidates]),
            age_s=np.array([max(now - each.last_used_s, 0.0) for each in episodes]),
        )
        chosen = scores >= self.config.min_importance
        report.kept += [each.id for each, move in zip(episodes, chosen, strict=True) if not move]
        return [each for each, move in zip(candidates, chosen, strict=True) if move]

    def _move(self, groups: Sequence[Group], episodes: dict[str, _Candidate], report: Consolidated) -> None:
        try:
            self._write(groups, episodes)
        except DataError as error:
            if len(groups) == 1:
                return _fail(report, groups, error)
            for group in groups:  # one that cannot be stored must not hold up the others
                self._move([group], episodes, report)
            return None
        except (StoreError, OSError) as error:
            return _fail(report, groups, error)
        for group in groups:
            try:
                self._verify(group, episodes)
            except (StoreError, OSError) as error:
                _fail(report, [group], error)
                continue
            self.episodic.remove(group.members)
            report.moved += group.members
            report.groups.append(group)
        return None

    def _write(self, groups: Sequence[Group], episodes: dict[str, _Candidate]) -> None:
        medoids = [episodes[group.medoid] for group in groups]
        taken = [record.id for record in self.semantic.store.get([group.medoid for group in groups]) if record]
        if taken:
            raise DataError(f"id {taken[0]!r} is that of another record in semantic memory")
        self.semantic.add(
            [each.episode.text for each in medoids],
            np.stack([each.vector for each in medoids]),
            [_metadata(group, episodes) for group in groups],
            [group.medoid for group in groups],
            encoder_ids=[each.episode.encoder_id for each in medoids],
        )

    def _verify(self, group: Group, episodes: dict[str, _Candidate]) -> None:
        medoid = episodes[group.medoid]
        [record] = self.semantic.store.get([group.medoid])
        if record is None or not all(_holds(record, episodes[id].episode) for id in group.members):
            raise StoreError(f"record {group.medoid!r} does not read back as it was written")
        if float(np.dot(record.vector, medoid.vector)) < 0.999 or not self._is_found(group.medoid, medoid.vector):
            raise StoreError(f"record {group.medoid!r} is not found by its vector")

    def _is_found(self, id: str, vector: np.ndarray) -> bool:
        return any(id in {hit.id for hit in self.semantic.store.query(vector, depth)[0]} for depth in _SEARCH_DEPTHS)


def _fail(report: Consolidated, groups: Sequence[Group], error: Exception) -> None:
    for group in groups:
        report.failed |= dict.fromkeys(group.members, str(error))


def _metadata(group: Group, episodes: dict[str, _Candidate]) -> dict[str, Any]:
    members = [episodes[id].episode for id in group.members]
    own = episodes[group.medoid].episode
    if KEY in own.metadata:
        raise DataError(f"episode {own.id!r}: the metadata key {KEY!r} is the consolidator's own; use another name")
    return own.metadata | {
        KEY: {
            "represents": list(group.members),
            "variants": sorted({each.text for each in members} - {own.text}),
            "time_s": max(each.time_s for each in members),
            "uses": sum(each.uses for each in members),
        }
    }


def _holds(record: Record | Hit, episode: Episode) -> bool:
    facts = record.metadata.get(KEY)
    if not isinstance(facts, dict) or episode.id not in facts.get("represents", []):
        return False
    return episode.text in (record.metadata.get(TEXT), *facts.get("variants", []))


def _cosine(each: _Candidate) -> float:
    """Cosine to the nearest long-term memory; -1 where there is none."""
    return each.hits[0].score if each.hits else -1.0
