"""`liquid data describe`: the card of a set, from one pass over it."""

from __future__ import annotations

import io
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard_set.check import Problems, index_faults
from data_prep.shard_set.index import code_counts, counted, perplexity
from data_prep.shard_set.maker import progress
from data_prep.shard_set.stream import open_index, shard_files
from liquid_train.data.shard_format import DamagedSample, decode_sample
from liquid_train.errors import UserError
from liquid_train.files import write_synced

MOST_USED = 8  # codes that are named


class Lengths:
    """How often each length occurs: as much memory as there are different lengths."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def quantile(self, share: float) -> int:
        """The smallest length that at least `share` of all do not exceed."""
        values = sorted(self.counts)
        cumulative = np.cumsum([self.counts[value] for value in values])
        return values[int(np.searchsorted(cumulative, share * cumulative[-1]))]

    def __str__(self) -> str:
        mean = sum(length * n for length, n in self.counts.items()) / self.counts.total()
        figures = {
            "min": min(self.counts),
            "median": self.quantile(0.5),
            "mean": mean,
            "95%": self.quantile(0.95),
            "max": max(self.counts),
        }
        return ", ".join(
            f"{name} {value:,.1f}" if name == "mean" else f"{name} {value:,}" for name, value in figures.items()
        )


class SetCard:
    """What one pass over a set finds. grids: (rows, columns) of the images. codes: how often each occurs, int64
    [codebook_size]."""

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, open_index(path)
        if faults := index_faults(self.index):
            raise UserError(f"{path}: {faults[0]}; `liquid data verify {path}` says more")
        self.totals: Counter[str] = Counter()
        self.grids: Counter[tuple[int, int]] = Counter()
        self.characters, self.words = Lengths(), Lengths()
        self.codes = np.zeros(self.index.get("codebook_size", 0), np.int64)
        self.damaged = Problems()

    def read(self) -> None:
        entries = self.index["shardlist"]
        with progress(
            f"reading {self.path.name}", sum(entry["nsamples"] for entry in entries), sys.stdout.isatty()
        ) as advance:
            for entry in entries:
                before = self.totals["samples"] + len(self.damaged)
                try:
                    for key, files in shard_files(self.path, entry):
                        self._add(key, files)
                except OSError as error:
                    self.damaged.add("tar", f"{entry['url']}: {error.strerror}")
                advance(self.totals["samples"] + len(self.damaged) - before)

    def _add(self, key: str, files: dict[str, bytes]) -> None:
        try:
            sample = decode_sample(key, files, self.index.get("codebook_size"))
        except DamagedSample as error:
            self.damaged.add("sample", str(error))
            return
        info, text = sample["info"], sample.get("text")
        questions, messages = info.get("questions", []), info.get("messages", [])
        self.totals.update(
            samples=1, questions=len(questions), asked=bool(questions), messages=len(messages), chats=bool(messages)
        )
        if text is not None:
            self.totals["texts"] += 1
            self.characters.counts[len(text)] += 1
            self.words.counts[len(text.split())] += 1
        if "ids" in sample:
            self.totals["text_ids"] += sample["ids"].size
        if "codes" in sample:
            codes = sample["codes"]
            self.totals.update(images=1, captions=text is not None)
            self.grids[codes.shape[0], codes.shape[1]] += 1
            found = code_counts(codes.astype(np.int64), len(self.codes))
            if len(found) > len(self.codes):  # the index of the set does not record its codebook's size
                self.codes = np.pad(self.codes, (0, len(found) - len(self.codes)))
            self.codes += found

    @property
    def text_name(self) -> str:
        return "captions" if self.totals["images"] else "texts"

    def grid_name(self, grid: tuple[int, int]) -> str:
        f = self.index.get("downsampling")
        return f"{grid[0]}x{grid[1]}" + (f" ({grid[1] * f}x{grid[0] * f} px)" if f else "")

    def rows(self) -> list[tuple[str, str]]:
        """(name, value) of every line of the card."""
        totals, entries = self.totals, self.index["shardlist"]
        size = sum(entry["bytes"] for entry in entries)
        rows = [
            ("set", str(self.path)),
            ("shards", f"{len(entries):,}, {size / 2**20:,.1f} MiB"),
            ("samples", f"{totals['samples']:,}"),
        ]
        if totals["text_ids"]:
            rows.append(("token ids", f"{totals['text_ids']:,}"))
        if self.damaged:
            rows.append(("damaged", f"{counted(self.damaged.counts)}: `liquid data verify {self.path}` names them"))
        if totals["images"]:
            rows.append(
                (
                    "images",
                    f"{totals['images']:,}, {totals['captions']:,} with a caption; {size / totals['images']:,.0f} "
                    "bytes an image",
                )
            )
            rows += [
                ("grid rows x columns", f"{self.grid_name(grid)}: {n:,}") for grid, n in self.grids.most_common(20)
            ]
            if len(self.grids) > 20:
                rows.append(("grid rows x columns", f"and {len(self.grids) - 20:,} more"))
        if totals["texts"]:
            rows += [
                (f"{self.text_name}, characters", str(self.characters)),
                (f"{self.text_name}, words", str(self.words)),
            ]
        if totals["questions"]:
            rows.append(("questions", f"{totals['questions']:,} about {totals['asked']:,} images"))
        if totals["messages"]:
            rows.append(("messages", f"{totals['messages']:,} in {totals['chats']:,} conversations"))
        return [*rows, *self._origin(), *self._codes()]

    def _origin(self) -> list[tuple[str, str]]:
        index, recipe = self.index, self.index.get("recipe", {})
        rows = [
            ("dropped", counted(index.get("dropped", {}))),
            ("omitted by the source", counted(index.get("omitted", {}))),
        ]
        if isinstance(recipe.get("source"), dict) and "name" in recipe["source"]:
            options = {
                key: value for key, value in recipe["source"].items() if key != "name" and not isinstance(value, dict)
            }
            rows.append(
                ("source", ", ".join([recipe["source"]["name"], *(f"{key} {value}" for key, value in options.items())]))
            )
        if inputs := index.get("inputs"):
            rows.append(
                (
                    "inputs",
                    f"{sum(count for _, count in inputs):,} rows in "
                    + (f"{len(inputs):,} files" if len(inputs) != 1 else inputs[0][0]),
                )
            )
        if isinstance(recipe.get("crop"), dict):
            rows.append(("crop", ", ".join(f"{key} {value}" for key, value in recipe["crop"].items())))
        if "vq_fingerprint" in index:
            how = (
                f", encoded in {recipe['precision']} on {index['encoder']['device']}"
                if "precision" in recipe and index.get("encoder")
                else ""
            )
            rows.append(
                (
                    "VQ",
                    f"fingerprint {index['vq_fingerprint'][:16]}, {index.get('codebook_size', 0):,} codes, "
                    f"{index.get('downsampling')} pixels a code{how}",
                )
            )
        return rows

    def _codes(self) -> list[tuple[str, str]]:
        total = int(self.codes.sum())
        if not total:
            return []
        descending = np.argsort(-self.codes, kind="stable")
        most = ", ".join(
            f"{code} ({self.codes[code] / total:.1%})" for code in descending[:MOST_USED] if self.codes[code]
        )
        tenth = self.codes[descending][: max(1, len(self.codes) // 10)].sum() / total
        used = int((self.codes > 0).sum())
        return [
            (
                "codes",
                f"{total:,}; {used:,} of {len(self.codes):,} in use ({used / len(self.codes):.1%}), perplexity "
                f"{perplexity(self.codes):,.1f}",
            ),
            ("most used codes", f"{most}; the most used tenth of the codebook makes {tenth:.1%}"),
        ]


def describe_set(path: Path, plot: Path | None) -> None:
    """Print the card of a set, and draw it. Raises UserError where there is no set."""
    card = SetCard(path)
    card.read()
    rows = card.rows()
    width = max(len(name) for name, _ in rows)
    for (name, text), (before, _) in zip(rows, [("", ""), *rows], strict=False):
        print(f"{'' if name == before else name:<{width}}  {text}")
    if plot is not None:
        draw(card, plot)
        print(f"{plot}: written")


def draw(card: SetCard, path: Path) -> None:
    """The codes' usage, the lengths of captions or texts, and the grid shapes side by side, as far as the set has them:
    a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        p
        for p, there in (
            (_plot_codes, card.codes.any()),
            (_plot_lengths, card.totals["texts"]),
            (_plot_grids, card.grids),
        )
        if there
    ]
    if not panels:
        raise UserError(f"{card.path}: neither codes nor texts in it, there is nothing to plot")
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 4.2), squeeze=False, layout="constrained"
    )
    for panel, axis in zip(panels, axes[0], strict=True):
        panel(card, axis)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{card.path.name}: {card.totals['samples']:,} samples")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_synced(path, buffer.getvalue())


def _plot_codes(card: SetCard, axis: Any) -> None:
    share = np.sort(card.codes[card.codes > 0])[::-1] / card.codes.sum()
    axis.fill_between(np.arange(1, len(share) + 1), share, share.min() / 2, step="mid", alpha=0.35)
    axis.plot(np.arange(1, len(share) + 1), share, drawstyle="steps-mid")
    axis.axhline(
        1 / len(card.codes), color="gray", linestyle="--", linewidth=1, label=f"all {len(card.codes):,} codes alike"
    )
    axis.set(
        yscale="log",
        xlabel="codes, the most used first",
        ylabel="share of all codes",
        title=f"Codebook usage: {len(share):,} of {len(card.codes):,} used",
    )
    axis.legend(frameon=False)


def _plot_lengths(card: SetCard, axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    counts = card.words.counts
    longest = card.words.quantile(0.99)  # a few very long ones would press the others together
    shown = {length: n for length, n in counts.items() if length <= longest}
    step = max(1, (longest - min(shown)) // 50)
    axis.hist(list(shown), weights=list(shown.values()), bins=np.arange(min(shown) - 0.5, longest + step + 0.5, step))
    axis.set_xlim(min(shown) - 2, longest + step + 2)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    beyond = (
        f" ({1 - sum(shown.values()) / counts.total():.1%} longer ones not shown)" if len(shown) < len(counts) else ""
    )
    axis.set(
        xlabel=f"words{beyond}",
        ylabel=card.text_name,
        title=f"Length of {card.text_name}: median {card.words.quantile(0.5):,} words",
    )


def _plot_grids(card: SetCard, axis: Any) -> None:
    grids = card.grids.most_common(12)
    bars = axis.barh([card.grid_name(grid) for grid, _ in grids], [n for _, n in grids])
    axis.bar_label(bars, labels=[f"{n:,}" for _, n in grids], padding=3)
    # the most frequent on top, and one bar alone not as thick as the panel
    axis.set_ylim(max(4, len(grids)) - 0.5, -0.5)
    axis.margins(x=0.15)
    axis.set(xlabel="images", ylabel="grid rows x columns", title=f"Grid shapes: {len(card.grids):,}")
