"""Real rare words, one shot: definitions to the memory, contexts with a blank ask for their word; beside baselines.

    python benchmarks/real_words.py --data-dir DIR            --quick proves it works

rare_words: a dictionary's definitions and examples, 1,000 test words a seed in episodes of 20. definitional_nonce:
halves of the first sentences of Wikipedia articles, all test words that fill episodes. Words that show a word's form
are blanked in both texts (rare_words), or the word is left out (definitional_nonce). The seed decides which words are
held out; models train 600 steps by the default strategy. One row tries four learning rates, takes the one that is best
on validation words, and is tested once; else nothing is searched. Intervals are Student's t over seeds.

Chimera: nonces in 2, 4 or 6 sentences; Spearman's correlation of similarities to probe words with people's, mean over
the test's 110 nonces, t interval over them. A nonce is the mean of its sentences' vectors, a probe the vector of the
word alone; of H-SOKV the vectors are its keys, learnt on rare_words, and correlations are means over seeds.

Published figures stand beside ours with their source; they come from word vectors with a vocabulary of 259 thousand
words, and are an anchor, not a comparison. DIR holds rare_words and oneshot_words.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from cells import cells_parser, run_cells
from encoder import encoder_folder
from harness import Target, write_result

from hsokv_ray.evaluation.intervals import over_seeds

PARTS = {
    "rare_words": "rare_words, 1 of 20, 1,000 test words a seed, accuracy in %",
    "definitional_nonce": "Definitional Nonce, filtered, in halves, 1 of 20, 160 test words a seed, accuracy in %",
}
CHOSEN = "MiniLM, rate chosen"
ROWS = {
    "words": "H-SOKV, words from scratch",
    "MiniLM": "H-SOKV on MiniLM",
    CHOSEN: "H-SOKV on MiniLM, learning rate chosen on validation",
}
"""What the models are given: words from scratch, or vectors of the frozen encoder."""
RATES = (1e-3, 3e-4, 1e-4, 3e-5)
"""Learning rates to choose from; the first is the default strategy's, and wins ties."""
TRIVIAL = ("chance", "string match", "1-NN, random embedding", "1-NN, TF-IDF", "1-NN, frozen vectors")
FROZEN = TRIVIAL[-1]
FIGURES = {"accuracy": "", "gate_0": ", gate 0", "without_memory": ", without memory", "retention": ", retention"}
LENGTHS = (2, 4, 6)
OURS = "H-SOKV on MiniLM, keys learnt on rare_words"
CHIMERA = ("random vectors", "frozen MiniLM", OURS)
PUBLISHED = (
    ("Word2Vec", 0.299, 0.332, 0.404),
    ("Additive", 0.358, 0.387, 0.420),
    ("Nonce2Vec", 0.328, 0.378, 0.401),
    ("A la carte", 0.363, 0.384, 0.394),
)
"""Chimera L2, L4 and L6: the comparison in arXiv:1910.00275; methods of arXiv:1707.06556 and arXiv:1805.05388."""
STEPS = 600


def main() -> None:
    parser = cells_parser(__doc__, "real_words")
    args = parser.parse_args()
    if args.cell:
        print(json.dumps(run_cell(args.data_dir, **json.loads(args.cell))))
        return
    wanted = [
        {"part": part, "row": row, "seed": seed, "quick": args.quick}
        for seed in range(2 if args.quick else args.seeds)
        for part in PARTS
        for row in ROWS
    ]
    cells = run_cells(__file__, wanted, args)
    tables = {title: words_table(cells, part) for part, title in PARTS.items()}
    tables["Chimera test, mean Spearman over 110 nonces (95 % interval)"] = chimera_table(cells)
    tables["Chimera, published: word vectors of a vocabulary of 259,000; an anchor, not a comparison"] = published()
    write_result("real_words", tables=tables, targets=targets(cells), quick=args.quick)


def run_cell(data: Path, *, part: str, row: str, seed: int, quick: bool) -> dict[str, Any]:
    """Train and test one model; one on vectors brings the trivial baselines of its episodes, and Chimera."""
    import torch

    from hsokv_ray.swarm.comparison import trivial_baselines
    from hsokv_ray.swarm.learners.rare_words import RareWordTask

    torch.set_num_threads(1)
    torch.get_num_threads()
    begin, encoder, steps = time.perf_counter(), encoder_folder(), 5 if quick else STEPS
    task = RareWordTask(
        data=str(data if part == "rare_words" else data / "oneshot_words"), words=part,  # pyright: ignore[reportArgumentType]
        encoder=None if row == "words" else encoder, total_steps=steps, num_test_words=200 if quick else 1000,
        seed=seed,
    )  # fmt: skip
    rates = RATES if row == CHOSEN else RATES[:1]
    all_trained = [trained(task, rate, seed) for rate in rates]
    learner = max(all_trained, key=lambda each: each.evaluate()["score"])
    tested = learner.test()
    figures: dict[str, Any] = {name: tested[name] for name in (*FIGURES, "n")}
    figures["learning_rate"] = learner.recipe.learning_rate
    if row == "MiniLM":
        figures |= {name: score.mean for name, score in trivial_baselines(task).items()}
        if part == "rare_words":
            figures["chimera"] = {str(length): correlations(data, length, learner, seed) for length in LENGTHS}
    return {"figures": figures, "seconds": time.perf_counter() - begin}


def trained(task: Any, rate: float, seed: int) -> Any:
    """Return a learner after a whole training by the default strategy at another rate."""
    from hsokv_ray.swarm.choose_task import default_strategy

    learner = task.learner()
    learner.configure(default_strategy(task) | {"learning_rate": rate}, seed=seed)
    learner.reset()
    learner.train(task.total_steps)
    return learner


def correlations(data: Path, length: int, learner: Any, seed: int) -> dict[str, list[float]]:
    """Return Spearman's correlation for each nonce, by row of the table."""
    import torch

    from hsokv_ray.data.tasks import read_chimera
    from hsokv_ray.data.tasks.words import words
    from hsokv_ray.evaluation import chimera_score
    from hsokv_ray.memory.encoders import open_encoder

    chimeras = read_chimera(data, num_sentences=length, part="test")  # pyright: ignore[reportArgumentType]
    texts = sorted({text for chimera in chimeras for text in (*chimera.sentences, *chimera.probes)})
    vocabulary = sorted({word for text in texts for word in words(text)})
    drawn = dict(zip(vocabulary, np.random.default_rng(seed).standard_normal((len(vocabulary), 64)), strict=True))
    vectors_ND = open_encoder(encoder_folder()).encode(texts)
    with torch.no_grad():
        keys_NK = learner.model.eval().keys(vectors=torch.from_numpy(vectors_ND)).numpy()
    rows = (np.array([np.mean([drawn[word] for word in words(text)], 0) for text in texts]), vectors_ND, keys_NK)
    found = {}
    for name, rows_ND in zip(CHIMERA, rows, strict=True):
        of = dict(zip(texts, rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True), strict=True))
        similar = [
            [float(of[probe] @ np.mean([of[text] for text in chimera.sentences], 0)) for probe in chimera.probes]
            for chimera in chimeras
        ]
        found[name] = [chimera_score([c], [row]).mean for c, row in zip(chimeras, similar, strict=True)]
    return found


def words_table(cells: list[dict[str, Any]], part: str) -> list[dict[str, Any]]:
    """Return a row for each baseline and each figure of each model, with its paired distance to the frozen vectors."""
    on_vectors = figures_of(cells, part, "MiniLM")
    columns = {name: [each[name] for each in on_vectors] for name in TRIVIAL}
    for row, label in ROWS.items():
        figures = figures_of(cells, part, row)
        columns |= {label + suffix: [each[name] for each in figures] for name, suffix in FIGURES.items()}
    leads = {name: np.subtract(values, columns[FROZEN]).tolist() for name, values in columns.items()}
    return [
        {
            "row": name.replace("vectors", "MiniLM"),
            "accuracy": over_seeds(values).percent(),
            "minus frozen MiniLM, points": "" if name == FROZEN else over_seeds(leads[name]).percent(),
            "seeds": len(values),
        }
        for name, values in columns.items()
    ]


def targets(cells: list[dict[str, Any]]) -> list[Target]:
    """The model whose rate was chosen: 30 points above itself without its memory, and above the frozen vectors."""
    found = []
    for part in PARTS:
        ours, frozen = figures_of(cells, part, CHOSEN), figures_of(cells, part, "MiniLM")
        gap = over_seeds([100 * (each["accuracy"] - each["without_memory"]) for each in ours])
        trivial = [max(each[name] for name in TRIVIAL) for each in frozen]
        lead = over_seeds([100 * (each["accuracy"] - best) for each, best in zip(ours, trivial, strict=True)])
        what = part.replace("_", " ")
        found += [
            Target(name=f"{what}: points with memory above without, lower end of the 95 % interval",
                   value=gap.low, bound=30, kind="at least"),
            Target(name=f"{what}: points above the best trivial baseline, lower end of the 95 % interval",
                   value=lead.low, bound=0, kind="at least"),
        ]  # fmt: skip
    return found


def chimera_table(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each kind of vectors."""
    each = [figures["chimera"] for figures in figures_of(cells, "rare_words", "MiniLM")]
    rows = []
    for name in CHIMERA:
        row = {"row": name}
        for length in LENGTHS:
            score = over_seeds(np.mean([one[str(length)][name] for one in each], 0).tolist())
            row[f"L{length}"] = f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}]"
        rows.append(row)
    return rows


def published() -> list[dict[str, Any]]:
    names = ("method", *(f"L{length}" for length in LENGTHS))
    return [dict(zip(names, row, strict=True)) | {"source": "arXiv:1910.00275"} for row in PUBLISHED]


def figures_of(cells: list[dict[str, Any]], part: str, row: str) -> list[dict[str, Any]]:
    """Return the figures of a model, by seed."""
    found = sorted((each["seed"], i) for i, each in enumerate(cells) if (each["part"], each["row"]) == (part, row))
    return [cells[i]["figures"] for _, i in found]


if __name__ == "__main__":
    main()
