"""The kind of a model by the names and shapes in its header. Kinds are data, in families/kinds.yaml."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from itertools import islice
from typing import Any

from ruamel.yaml import YAML

__all__ = ["FileKind", "kind_of", "shown_name"]

Shapes = Mapping[str, tuple[int, ...]]

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.[^.]+$")
_DIFFUSERS = "diffusers:"
_DEEPEST_FOLDER = 12  # dots in a name; those of the table have eight, those of a file any number
_WHOLE = "give the single file with all of the model, as WebUIs and ComfyUI load it"
_LONGEST_NAME = 120  # characters of a tensor's name in messages


@dataclass(frozen=True)
class FileKind:
    """Kind of a file.

    Attributes:
        name: Name for programs.
        title: Title with its article ("an SDXL checkpoint").
        evidence: The names or numbers in the file that identify the kind.
        variant: Difference from the plain model ("inpainting"); "" for a plain model.
        layout: Name of the layout of such a file with that layout's names, whether or not blockfit has the layout yet;
            None for a file that cannot be a checkpoint.
        whole: Whether it is a checkpoint rather than a part of a model.
        misnamed: Whether it is a checkpoint whose network has other names than in checkpoints.
        advice: The remedy; "" without one.
    """

    name: str
    title: str
    evidence: str
    variant: str = ""
    layout: str | None = None
    whole: bool = False
    misnamed: bool = False
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.title} ({self.evidence})"

    def as_dict(self) -> dict[str, str | None]:
        """Return the fields that identify the kind, for JSON."""
        return {"name": self.name, "title": self.title, "evidence": self.evidence}


def kind_of(shapes: Shapes, *, metadata: Mapping[str, str] | None = None, file_name: str = "") -> FileKind | None:
    """Return the kind of a file by its tensors.

    Args:
        shapes: Shapes of the tensors by stored name.
        metadata: Metadata of the header.
        file_name: Name of the file; it identifies parts of a model that was saved in several files.

    Returns:
        The kind; None if it is unknown.
    """
    header = _Header(shapes)
    found = (
        _lora(header)
        or _first(_table()["beside"], header)
        or _network(header, metadata or {})
        or _first(_table()["parts"], header)
    )
    part = _SHARD.search(file_name)
    if part is None or int(part[2]) < 2:
        return found
    number, count = map(int, part.groups())
    whole = "the folder holds all parts and their index"
    return FileKind("shard", f"part {number} of {count} of a model", f"{part[0]} in its name", advice=whole)


def shown_name(name: str) -> str:
    """Return a tensor's name for a message, quoted, and cut off if it is very long."""
    return repr(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}...")


class _Header:
    """Names and shapes of a header behind a prefix, with fast search for tensors and folders of names."""

    def __init__(self, shapes: Shapes, prefix: str = "") -> None:
        self.shapes = shapes
        self.prefix = prefix

    @cached_property
    def folders(self) -> frozenset[str]:
        """Beginnings of names up to one of their first dots, the dot included."""
        dots = re.compile(r"\.")
        return frozenset(
            name[: dot.end()] for name in self.shapes for dot in islice(dots.finditer(name), _DEEPEST_FOLDER)
        )

    def behind(self, prefix: str) -> "_Header":
        """Return the same header with the networks' names behind this prefix."""
        found = _Header(self.shapes, prefix)
        found.__dict__["folders"] = self.folders
        return found

    def find(self, pattern: str) -> str | None:
        """Return the first name that fits one of the pattern's alternatives, or None."""
        for alternative in _alternatives(pattern):
            name = alternative.removeprefix(_DIFFUSERS)
            full = name[1:] if name.startswith("/") else self.prefix + name
            if name.startswith("*."):
                found = next((each for each in self.shapes if each.endswith(name[1:])), None)
            elif name.endswith("*"):
                possible = not name.endswith(".*") or full[:-1] in self.folders
                found = next((each for each in self.shapes if each.startswith(full[:-1])), None) if possible else None
            else:
                found = full if full in self.shapes else None
            if found is not None:
                return found
        return None

    def measure(self, name: str) -> int | None:
        """Return the number that `measures` in the table defines; None if no tensor has it."""
        rule = _table()["measures"][name]
        shapes = (self.shapes.get(self.prefix + tensor) for tensor in rule["of"])
        return next((shape[rule["axis"]] for shape in shapes if shape and len(shape) > rule["axis"]), None)

    def fits(self, rule: Mapping[str, Any]) -> bool:
        """Return whether the file fits the rule."""
        return (
            all(self.find(pattern) for pattern in rule.get("has", ()))
            and not any(self.find(pattern) for pattern in rule.get("lacks", ()))
            and all(self.measure(name) in _listed(rule[name]) for name in _table()["measures"] if name in rule)
        )

    def evidence(self, rule: Mapping[str, Any], shown: Sequence[str] = ()) -> str:
        """Return the evidence for a rule: its numbers if it has any, else a name that the file holds."""
        measures = _table()["measures"]
        names = dict.fromkeys([*shown, *(name for name in measures if name in rule)])
        numbers = {name: self.measure(name) for name in names}
        words = [measures[name]["words"].format(number) for name, number in numbers.items() if number is not None]
        if not words:
            words = [f"holds {shown_name(str(self.find(pattern)))}" for pattern in rule.get("has", ())[:1]]
        return ", ".join([*words, *([rule["told"]] if "told" in rule else [])])

    def in_diffusers_names(self, rule: Mapping[str, Any]) -> bool:
        """Return whether the rule fits by a name in diffusers' spelling."""
        for pattern in rule.get("has", ()):
            for alternative in _alternatives(pattern):
                if self.find(alternative):
                    if alternative.startswith(_DIFFUSERS):
                        return True
                    break
        return False


def _first(rules: Iterable[Mapping[str, Any]], header: _Header) -> FileKind | None:
    rule = next((rule for rule in rules if header.fits(rule)), None)
    if rule is None:
        return None
    evidence = header.evidence(rule, rule.get("evidence", ()))
    title = f"{'an' if rule.get('an') else 'a'} {rule['title']}"
    return FileKind(rule["name"], title, evidence, advice=rule.get("advice", ""))


def _network(header: _Header, metadata: Mapping[str, str]) -> FileKind | None:
    for prefix in _table()["prefixes"]:
        if prefix and prefix not in header.folders:
            continue
        behind = header.behind(prefix)
        for group in _table()["networks"]:
            if behind.fits({"has": group.get("has", ())}):
                rule = next((rule for rule in group["kinds"] if behind.fits(rule)), None)
                if rule is not None:
                    return _named_network(behind, group, rule, metadata)
    return None


def _named_network(
    header: _Header, group: Mapping[str, Any], rule: Mapping[str, Any], metadata: Mapping[str, str]
) -> FileKind:
    article = "an" if rule.get("an") else "a"
    variant = rule.get("variant", "")
    called = f"{rule['title']} {variant}".strip()
    encoder, vae = (any(p in header.folders for p in _table()[part]) for part in ("encoders", "vaes"))
    diffusers = header.in_diffusers_names(group) or header.in_diffusers_names(rule)
    prefix = _table()["prefixes"][0]
    misnamed = (encoder or vae) and group["part"] == "UNet" and not rule.get("plain") and header.prefix != prefix
    advice = _WHOLE if diffusers else ""
    if rule.get("plain"):
        title = f"{article} {called}"
    elif encoder or vae:
        title = f"{article} {called} checkpoint" + ("" if encoder else " without text encoder")
        if misnamed and diffusers:
            title += " in diffusers names"
        elif misnamed:
            title += f" with the names of its UNet {f'behind {header.prefix!r}' if header.prefix else 'bare'}"
            advice = f"put {prefix!r} {'there' if header.prefix else 'before them'}, as WebUIs and ComfyUI look for it"
    elif diffusers:
        title = f"the {group['part']} of {article} {called} model alone, in diffusers names"
    elif not header.prefix and group["part"] == "UNet":
        title = f"the {group['part']} of {article} {called} model alone, without the prefix {prefix!r}"
    else:
        title = f"the {group['part']} of {article} {called} model alone"
    alone = encoder or vae or rule.get("plain")
    form = _quantized(header, metadata)
    if form is not None:
        way, evidence = form
        return FileKind(
            rule["name"], f"{title}, {way}", evidence, variant,
            advice="give the file that it was made from, in float16, bfloat16 or float32",
        )  # fmt: skip
    return FileKind(
        name=rule["name"] if alone else f"{rule['name']}-{group['part'].lower()}",
        title=title,
        evidence=header.evidence(rule, group.get("evidence", ())),
        variant=variant,
        layout=rule.get("layout"),
        whole=encoder or vae,
        misnamed=misnamed,
        advice=advice,
    )


def _quantized(header: _Header, metadata: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the form of packed weights and the name that identifies it; None if stored numbers are the weights."""
    for rule in _table()["quantized"]:
        ends = _ends(rule["ends"])
        found = next((name for name in header.shapes if name.endswith(ends)), None)
        found = found or next((field for field in rule.get("metadata", ()) if field in metadata), None)
        if found is not None:
            return rule["title"], f"holds {shown_name(found)}"
    return None


def _lora(header: _Header) -> FileKind | None:
    table = _table()["loras"]
    ends = _ends(end for rule in table["algorithms"] for end in rule["ends"])
    names = [name for name in header.shapes if name.endswith(ends)]
    counted = sum(name.endswith((*ends, *_ends(table["also"]))) for name in header.shapes)
    if not names or 2 * counted < len(header.shapes):
        return None
    rule, example = next(
        (rule, name) for rule in table["algorithms"] for name in names if name.endswith(_ends(rule["ends"]))
    )
    title = f"{'an' if rule.get('an') else 'a'} {rule['title']}"
    if rule["name"] == "lora" and any(_is_kernel(header.shapes[name]) for name in names):
        title = "a LoCon (a LoRA of convolutions, too)"
    family = next((rule["title"] for rule in table["families"] if _trained_on(rule, header)), None)
    spelling = next(
        (rule["title"] for rule in table["spellings"] if any(name.startswith(tuple(rule["begins"])) for name in names)),
        None,
    )
    words = [title, *([f"for {family}"] if family else []), *([f"in {spelling}"] if spelling else [])]
    return FileKind(rule["name"], " ".join(words), f"holds {shown_name(example)}", advice=table["advice"])


def _is_kernel(shape: tuple[int, ...]) -> bool:
    return len(shape) == 4 and shape[-1] > 1


def _trained_on(rule: Mapping[str, Any], header: _Header) -> bool:
    """Return whether a LoRA's names, or the text width of its cross-attention, are those of this family."""
    return any(part in name for part in rule.get("holds", ()) for name in header.shapes) or any(
        re.search(r"attn2[._]to_[kv]\b", name) and shape[-1] in rule["text"]
        for name, shape in header.shapes.items()
        if "text" in rule and len(shape) == 2
    )


def _ends(ends: Iterable[str]) -> tuple[str, ...]:
    """Return the ends as in names: after a dot, except those that begin within a word."""
    return tuple(end if end.startswith("_") else f".{end}" for end in ends)


def _alternatives(pattern: str) -> Iterator[str]:
    return (part.strip() for part in pattern.split("|"))


def _listed(value: int | Sequence[int]) -> Sequence[int]:
    return [value] if isinstance(value, int) else value


@cache
def _table() -> Mapping[str, Any]:
    text = (resources.files("optimizer.families") / "kinds.yaml").read_text(encoding="utf-8")
    table: Mapping[str, Any] = YAML(typ="safe").load(text)
    return table
