"""The loss of an approximated export: the distance of its merge from the recipe's, from inner products.

Both merges are weighted sums of the same sources, so inner products of the sources' differences from the base give the
distance between them and that of either from the base. A study's statistics hold these products; without, they are
measured from the checkpoints.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from optimizer.errors import CheckpointError, InputError
from optimizer.events import Progress
from optimizer.library import HashCache, Library
from optimizer.merging import check_noted_hashes
from optimizer.recipes import Algebra, Contributors, Group, Part, Recipe, folders_of, load_recipe
from optimizer.similarity import (
    ExplainedMetric,
    Measured,
    Statistics,
    measure_grams,
    open_comparison,
    read_measured,
)
from optimizer.studies import StudyFolder, noted_searches

__all__ = ["ConversionLoss", "conversion_loss"]

_STUDY = "study.yaml"


@dataclass(frozen=True)
class ConversionLoss:
    """The loss of a converted recipe, |converted - exact|^2 / |exact - base|^2 over the tensors that metrics score.

    A share is None if the exact merge is the base there and the converted one is not.

    Attributes:
        base: The model that differences are taken from.
        total: The share over all measured blocks.
        blocks: The share of each measured block.
        vae: The share of the VAE, which no similarity scores; None too if its coefficients are the same.
        explained: The share of the target that the recipe and the converted one explain, mean over the blocks, if a
            study's statistics are known.
        measured: What was measured: "statistics" of a study, or "checkpoints".
        vae_changed: Whether the coefficients of the VAE differ.
    """

    base: str
    total: float | None
    blocks: Mapping[str, float | None]
    vae: float | None = None
    explained: tuple[float, float] | None = None
    measured: str = "statistics"
    vae_changed: bool = field(default=False, repr=False)

    @property
    def worst(self) -> str | None:
        """The block with the largest share, one without a share first; None if no block loses anything."""
        losing = {name: math.inf if share is None else share for name, share in self.blocks.items() if share != 0}
        return max(losing, key=lambda name: losing[name], default=None)

    def __str__(self) -> str:
        more = [] if self.worst is None else [f"worst block {self.worst}: {_shown(self.blocks[self.worst])}"]
        more += [f"VAE: {_shown(self.vae)}"] if self.vae_changed else []
        text = f"loss: {_shown(self.total)} of |merge - {self.base}|^2"
        text += f" ({', '.join(more)})" if more else ""
        if self.explained is not None:
            text += ", explained {:.6f} -> {:.6f}".format(*self.explained)
        return text

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name as JSON values."""
        explained = None if self.explained is None else dict(zip(("before", "after"), self.explained, strict=True))
        return {
            "base": self.base,
            "total": self.total,
            "worst": self.worst,
            "blocks": dict(self.blocks),
            "vae": self.vae,
            "explained": explained,
            "measured": self.measured,
        }


def _squared_distances(
    products: torch.Tensor, exact: torch.Tensor, converted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return |converted - exact|^2 and |exact - base|^2 of weighted sums of K sources, both float64 [n].

    Args:
        products: Inner products of the sources' differences from the base, float64 [n, K, K].
        exact: Coefficients, float64 [n, K].
        converted: Other coefficients, float64 [n, K].
    """

    def squared(weights: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nk,nkl,nl->n", weights, products, weights).clamp_min(0)

    return squared(converted - exact), squared(exact)


def conversion_loss(
    path: Path | str,
    converted: Recipe,
    *,
    folders: Sequence[Path] = (),
    device: torch.device | str | None = None,
    hashes: HashCache | None = None,
    progress: Progress | None = None,
) -> ConversionLoss:
    """Measure what the conversion of a recipe costs.

        found = approximate_recipe(load_recipe("mine/best.yaml"), "comfyui")
        print(conversion_loss("mine/best.yaml", found.recipe))

    The statistics beside the recipe are used if they are of its sources and cover what was changed. Otherwise, and for
    a VAE, the checkpoints are read. InputError is raised if neither are there, or the checkpoints do not fit each
    other.

    Args:
        path: The recipe's file.
        converted: The converted recipe, over sources of the recipe in `path`.
        folders: Further folders to search for files.
        device: A torch device, or auto, cpu (the default) or cuda.
        hashes: A cache of hashes.
        progress: A callback for progress.

    Returns:
        The loss.
    """
    path, library = Path(path), Library.of(folders, hashes, progress)
    exact = load_recipe(path)
    base = exact.noted_base or exact.first_model()
    vae = exact.layout.vae
    pair = _Pair(exact, converted)
    found = _from_statistics(path, pair, base)
    changed_vae = vae is not None and not torch.equal(*pair.of_place(vae.prefix))
    if found is not None and not changed_vae:
        return found
    paths = _files(path, exact, base, library)
    if found is None:
        products, parts = _measured(pair, paths, base, base, lambda part: part.scored, library, device)
        found = _loss(pair, products, parts, tuple(paths), base, "checkpoints")
    if not changed_vae:
        return found
    assert vae is not None
    holder = next(
        name for name, share in zip(pair.sources, pair.of_place(vae.prefix)[1].tolist(), strict=True) if share
    )
    products, parts = _measured(pair, paths, base, holder, lambda part: vae.holds(part.name), library, device)
    lost, whole = _squared_distances(products, *pair.coefficients(parts, tuple(paths)))
    return ConversionLoss(
        base, found.total, found.blocks, _share(lost.sum(), whole.sum()), found.explained, found.measured, True
    )


class _Pair:
    """A recipe and its conversion, as coefficients of the same tensors."""

    def __init__(self, exact: Recipe, converted: Recipe) -> None:
        self.exact, self.converted = exact, converted
        self.sources = exact.sources()

    def coefficients(self, parts: Sequence[Part], sources: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the coefficients of both in each part, two of float64 [parts, sources]."""
        return _coefficients(self.exact, parts, sources), _coefficients(self.converted, parts, sources)

    def of_place(self, place: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the coefficients of both in tensors of a place that all sources hold, two of float64 [sources]."""
        part = Part(place, None, (), tuple(range(len(self.sources))), scored=False)
        exact, converted = self.coefficients([part], self.sources)
        return exact[0], converted[0]


def _coefficients(recipe: Recipe, parts: Sequence[Part], sources: Sequence[str]) -> torch.Tensor:
    of_part = [Group(recipe.block_of(part.name), part.holders, part.other_shapes) for part in parts]
    groups = list(dict.fromkeys(of_part))
    algebra = Algebra(recipe, groups, sources)
    rows = algebra.coefficients(algebra.starting_alphas())[0]
    position = {group: row for row, group in enumerate(groups)}
    found = rows[[position[group] for group in of_part]].clone()
    for row, part in enumerate(parts):
        if recipe.vae is not None and recipe.copies(part.name):
            found[row] = 0.0
            found[row, list(sources).index(recipe.vae)] = 1.0
    return found


def _loss(
    pair: _Pair, products: torch.Tensor, parts: Sequence[Part], sources: Sequence[str], base: str, measured: str
) -> ConversionLoss:
    lost, whole = _squared_distances(products, *pair.coefficients(parts, sources))
    blocks = dict.fromkeys(block for block in pair.exact.layout.blocks if any(part.block == block for part in parts))
    shares = {}
    for block in blocks:
        rows = [row for row, part in enumerate(parts) if part.block == block]
        shares[block] = _share(lost[rows].sum(), whole[rows].sum())
    return ConversionLoss(base, _share(lost.sum(), whole.sum()), shares, measured=measured)


def _share(lost: torch.Tensor, whole: torch.Tensor) -> float | None:
    if lost == 0:
        return 0.0
    return float(lost / whole) if whole > 0 else None


def _shown(share: float | None) -> str:
    return "not measurable (the recipe changes nothing there)" if share is None else f"{share:.4g}"


def _from_statistics(path: Path, pair: _Pair, base: str) -> ConversionLoss | None:
    """Return the loss by the statistics beside a study's recipe; None if they do not cover what was changed."""
    exact = pair.exact
    outputs = StudyFolder(path.parent)
    if not (path.parent / _STUDY).is_file():
        return None
    try:
        known = read_measured(outputs.statistics)
    except CheckpointError:
        return None
    if known is None:
        return None
    alike = (known.layout.name, known.mapping, known.reference) == (exact.layout.name, exact.mapping, base)
    if not alike or not all(_is_known(exact, name, known) for name in pair.sources):
        return None
    sources = tuple(known.sources)
    before, after = pair.coefficients(known.parts, sources)
    measured = {(part.name, part.channels) for part in known.scored}
    changed = (before != after).any(dim=1).tolist()
    if any(
        part.scored and differs and (part.name, part.channels) not in measured
        for part, differs in zip(known.parts, changed, strict=True)
    ):
        return None
    loss = _loss(pair, known.gram[:, 1:-1, 1:-1], known.scored, sources, base, "statistics")
    target = exact.noted.target
    if target is None or target.file != known.target.file:
        return loss
    return ConversionLoss(base, loss.total, loss.blocks, explained=_explained(pair, known, sources))


def _is_known(recipe: Recipe, name: str, known: Measured) -> bool:
    """Return whether statistics are of the file that a recipe names."""
    mark, model = known.sources.get(name), recipe.models[name]
    if mark is None:
        return False
    if mark.sha256 is not None and model.sha256 is not None:
        return mark.sha256 == model.sha256
    return mark.file == model.file


def _explained(pair: _Pair, known: Measured, sources: Sequence[str]) -> tuple[float, float] | None:
    """Return the share of the target that both explain, mean over the blocks of the fit."""
    scored = known.scored
    # One row for each part, since a conversion may move parts of one group by different blocks.
    groups = [Group.of_part(part) for part in scored]
    statistics = Statistics(
        names=tuple(part.name for part in scored),
        blocks=tuple(part.block for part in scored if part.block is not None),
        group=torch.arange(len(scored)),
        referenced=known.referenced,
        gram=known.gram,
    )
    noted = {block for search in noted_searches(pair.exact) for block in search.blocks}
    blocks = tuple(block for block in known.blocks if not noted or block in noted)
    metric = ExplainedMetric(statistics, groups, blocks)
    if not metric.blocks:
        return None
    before, after = (float(metric.score(rows[None]).mean()) for rows in pair.coefficients(scored, sources))
    return before, after


def _files(path: Path, recipe: Recipe, base: str, library: Library) -> dict[str, Path]:
    """Return the checkpoints of a recipe and the base; raise InputError if any is missing."""
    names = {*recipe.sources(), base}
    files = {name: model.file for name, model in recipe.models.items() if name in names}
    beside, *others = folders_of(recipe, path, library.folders)
    paths, problems = library.within(others).find_models(files, beside, named_in=path)
    if problems:
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        raise InputError(
            f"the loss cannot be measured, neither from a study's statistics nor from the files: {problems[0]}{more}",
            field="approximate",
        )
    check_noted_hashes(recipe.models, paths, library, named_in=path, known=True)
    return {name: paths[name] for name in files}


def _measured(
    pair: _Pair,
    paths: Mapping[str, Path],
    base: str,
    other: str,
    wanted: Callable[[Part], bool],
    library: Library,
    device: torch.device | str | None,
) -> tuple[torch.Tensor, list[Part]]:
    """Return inner products of the differences from the base, float64 [parts, K, K], and the parts.

    Parts that the model `other` lacks are left out.

    Raises:
        InputError: The conversion changes a part that `other` lacks.
        CheckpointError: A source contains NaN or Inf.
    """
    exact, sources = pair.exact, tuple(paths)
    with open_comparison(
        exact.layout,
        paths,
        paths[other],
        base=paths[base],
        mapping=exact.mapping,
        contributing=Contributors(exact, sources, [exact.output]),
        device=device,
        events=library.events,
    ) as comparison:
        parts = [part for part in comparison.parts if wanted(part)]
        before, after = pair.coefficients(parts, sources)
        held = [part.held_by(comparison.target) for part in parts]
        for part, differs, is_held in zip(parts, (before != after).any(dim=1).tolist(), held, strict=True):
            if differs and not is_held:
                raise InputError(
                    f"the loss cannot be measured: {comparison.target.label} lacks {part.name!r}, which the conversion "
                    "changes",
                    field="approximate",
                )
        parts = [part for part, is_held in zip(parts, held, strict=True) if is_held]
        grams = measure_grams(comparison, parts)
        if not bool(torch.isfinite(grams).all()):
            raise CheckpointError("the loss cannot be measured: a source contains NaN or Inf", field="approximate")
    return grams[:, 1:-1, 1:-1], parts
