"""Folders are rooms: imports point one way, no room is too large, and each exports only names used elsewhere."""

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optimizer

PACKAGE = Path(optimizer.__file__).parent
ROOT = PACKAGE.parent
# Modules that every room may import.
GROUND = frozenset(
    {
        *("bars", "choices", "environment", "errors", "events", "extras", "fonts", "html", "printable", "threads"),
        "version",
    }
)
# A room may import rooms of the lines above its own, and none of its own line or below.
ORDER = (
    {"files"},
    {"families"},
    {"checkpoints"},
    {"library", "recipes"},
    {"merging", "interchange", "similarity"},
    {"pictures"},
    {"samplers"},
    {"studies"},
    {"analysis"},
    {"search"},
    {"reports"},
    {"demo"},
    {"cli", "interactive"},
)
ROOMS = tuple(sorted(set().union(*ORDER)))
# Imports forbidden in addition to the order.
NEVER = {
    "samplers": frozenset(ROOMS) - {"samplers"},
    "similarity": frozenset({"library"}),
    "studies": frozenset({"merging", "interchange", "pictures"}),
}
ABOVE_LIBRARIES = {"pandas", "matplotlib", "typer", "rich"}
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES} - {PACKAGE})


def name_of(path):
    """Return the dotted name of a module by its path."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports_in(path):
    """Return every import anywhere in a module: (module, name), with the name None for `import module`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports relatively"
            found += [(node.module, alias.name) for alias in node.names]
    return found


IMPORTS = {name_of(path): imports_in(path) for path in MODULES}
# The names of `optimizer` are imported on first use, from the modules in its stub.
IMPORTS["optimizer"] += imports_in(PACKAGE / "__init__.pyi")


def in_room(name):
    """Return the modules of a room and its folders."""
    return [module for module in IMPORTS if f"{module}.".startswith(f"optimizer.{name}.")]


def rooms_of(module):
    """Return the rooms and ground modules that a module imports from."""
    names = [
        name if source == "optimizer" else source.split(".")[1] for source, name in IMPORTS[module] if is_ours(source)
    ]
    return {name for name in names if name is not None}


def is_ours(source):
    """Return whether a module is blockfit's own."""
    return source.split(".")[0] == "optimizer"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    """A room imports only from the ground and from rooms above it in the order."""
    (line,) = (number for number, names in enumerate(ORDER) if room in names)
    allowed = ({room} | GROUND).union(*ORDER[:line]) - NEVER.get(room, set())
    for module in in_room(room):
        assert rooms_of(module) <= allowed, f"{module} imports {rooms_of(module) - allowed}"


def test_every_folder_has_its_place_in_the_order():
    """The check covers every folder and module of the package, and finds their imports."""
    assert {path.name for path in FOLDERS if path.parent == PACKAGE} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"} == GROUND
    assert {"recipes", "similarity", "studies"} <= {name for module in in_room("search") for name in rooms_of(module)}


def test_the_ground_imports_nothing_but_itself():
    """Ground modules import no room."""
    for name in GROUND:
        assert rooms_of(f"optimizer.{name}") <= GROUND


def test_inner_folders_do_not_import_their_room():
    """Modules in a folder below a room do not import the room's own files."""
    for module in in_room("search.trials"):
        imported = {source for source, _ in IMPORTS[module] if source.startswith("optimizer.search")}
        assert all(source.startswith("optimizer.search.trials") for source in imported), module
    for inner in ("notation", "exports"):
        for module in in_room(f"interchange.{inner}"):
            imported = {source for source, _ in IMPORTS[module] if source.startswith("optimizer.interchange")}
            assert all(
                source.startswith(("optimizer.interchange.notation", f"optimizer.interchange.{inner}"))
                for source in imported
            )


@pytest.mark.parametrize("room", ["search", "reports", "cli", "demo", "analysis"])
def test_optuna_stays_behind_its_border(room):
    """Above `search.trials`, trials are blockfit's records; only the dashboard reads Optuna's.

    Private names of Optuna are used in one file.
    """
    border, privates = "optimizer.search.trials", "optimizer.search.trials.optuna_privates"
    for module in in_room(room):
        if not f"{module}.".startswith(f"{border}.") and module != "optimizer.reports.dashboard":
            assert not {source for source, _ in IMPORTS[module] if source.split(".")[0] == "optuna"}, module
        text = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        if module != privates and text.is_file():
            named = {node.attr for node in ast.walk(ast.parse(text.read_text("utf-8"))) if is_private(node)}
            assert not named, f"{module} reads {named}"
            hidden = {source for source, _ in IMPORTS[module] if source.startswith("optuna.") and "._" in source}
            assert not hidden, f"{module} imports {hidden}"


def is_private(node):
    """Return whether a node reads a private attribute of an Optuna study, trial or storage."""
    if not isinstance(node, ast.Attribute):
        return False
    on_self = isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr in ("_study_id", "_trial_id", "_backend") or (node.attr == "_storage" and not on_self)


def defined_in(source, name):
    """Return the module that defines a name, even if other modules pass it on."""
    if f"{source}.{name}" in IMPORTS and (source, name) not in PASSED_ON:
        return f"{source}.{name}"
    while (source, name) in PASSED_ON:
        source, name = PASSED_ON[source, name]
    return source


PASSED_ON = {
    (module, name): (source, name)
    for module in IMPORTS
    if (PACKAGE.parent.joinpath(*module.split(".")) / "__init__.py").is_file() and module != "optimizer"
    for source, name in IMPORTS[module]
    if is_ours(source) and name is not None
}


def test_no_circle_of_files():
    """No file imports itself through other files, under any name."""
    graph = {
        module: {defined_in(source, name) for source, name in found if is_ours(source) and name is not None} - {module}
        for module, found in IMPORTS.items()
        if module != "optimizer" and not is_front(module)
    }
    assert graph["optimizer.similarity.memory"] >= {"optimizer.errors", "optimizer.similarity.metric"}
    graphlib.TopologicalSorter(graph).prepare()


def is_front(module):
    """Return whether a module is the `__init__` of a room."""
    return ROOT.joinpath(*module.split("."), "__init__.py").is_file()


def test_no_folder_holds_more_than_a_sixth():
    """No folder's own files have more than a sixth of all lines."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    whole = sum(lines.values())
    for folder in FOLDERS:
        share = sum(count for path, count in lines.items() if path.parent == folder) / whole
        assert share <= 1 / 6, f"{folder}: {share:.1%}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: name_of(path / "__init__.py"))
def test_each_front_is_short_and_complete(folder):
    """Each `__init__` but the command's has a docstring of at most three lines; `__all__` lists its imports."""
    front = folder / "__init__.py"
    tree = ast.parse(front.read_text(encoding="utf-8"))
    document = ast.get_docstring(tree)
    assert document
    if folder.name != "cli":
        assert len(document.splitlines()) <= 3
        passed_on = [name for _, name in IMPORTS[name_of(front)]]
        assert named_in(front) == sorted(passed_on, key=lambda name: (kind(name), name))


def named_in(front):
    """Return the names in the `__all__` of an `__init__`."""
    tree = ast.parse(front.read_text(encoding="utf-8"))
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return [name for found in lists for name in ast.literal_eval(found)]


def kind(name):
    """Return the sorting key of a name, as in ruff: constants first, then classes, then functions."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: name_of(path / "__init__.py"))
def test_each_front_exports_only_used_names(folder):
    """Each name that a room exports is imported elsewhere: by rooms, beside the package, or by tests of other rooms."""
    room = name_of(folder / "__init__.py")
    used = {
        name
        for module, found in IMPORTS.items()
        if not f"{module}.".startswith(f"{room}.")
        for source, name in found
        if source == room
    }
    top = folder.relative_to(PACKAGE).parts[0]
    for beside in ("tests", "studies", "notebooks"):
        for path in (ROOT / beside).rglob("*.py"):
            if path.parts[len(ROOT.parts) : len(ROOT.parts) + 2] != ("tests", top):
                used |= {name for source, name in imports_in(path) if source == room}
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for names in re.findall(rf"^from {re.escape(room)} import (.+)$", text, re.MULTILINE):
            used |= set(names.split(", "))
    shown = set(named_in(folder / "__init__.py"))
    assert shown <= used, f"nothing outside imports {sorted(shown - used)}"


@pytest.mark.parametrize(
    ("room", "libraries"),
    [
        ("files", {"torch", "safetensors", "optuna", "scipy", *ABOVE_LIBRARIES}),
        ("families", {"torch", "safetensors", "optuna", "scipy", *ABOVE_LIBRARIES}),
        ("checkpoints", {"optuna", "pydantic", "scipy", *ABOVE_LIBRARIES}),
        ("library", {"optuna", "pydantic", "scipy", *ABOVE_LIBRARIES}),
        ("recipes", {"optuna", "safetensors", "scipy", *ABOVE_LIBRARIES}),
        ("merging", {"optuna", "safetensors", "scipy", *ABOVE_LIBRARIES}),
        ("interchange", {"torch", "safetensors", "optuna", "scipy", "sd_mecha", "mergekit", *ABOVE_LIBRARIES}),
        ("similarity", {"optuna", "safetensors", "scipy", *ABOVE_LIBRARIES}),
        ("pictures", {"optuna", "safetensors", "scipy", "pandas", "typer", "rich"}),
        ("samplers", {"torch", "safetensors", "pydantic", *ABOVE_LIBRARIES}),
        ("studies", {"optuna", "safetensors", *ABOVE_LIBRARIES}),
        ("analysis", {"optuna", "safetensors", *ABOVE_LIBRARIES}),
        ("search", {"safetensors", *ABOVE_LIBRARIES}),
    ],
)
def test_rooms_import_only_their_libraries(room, libraries):
    """A room does not import the libraries of other rooms."""
    for module in in_room(room):
        wrong = {source for source, _ in IMPORTS[module] if source.split(".")[0] in libraries}
        assert not wrong, f"{module} imports {wrong}"


# Classes that read files; only checkpoints.reading gives them the protocol.
CONCRETE = {"Checkpoint", "FileReader", "HeldFile", "SelectedTensors", "StoredTensorInfo", "TorchFile"}
# Modules of checkpoints that work with any source.
FOR_ANY_SOURCE = {"configuration", "naming", "prediction", "recognition", "source", "zero_tensors", "zeros"}


def test_sources_are_known_by_their_protocol():
    """Outside checkpoints, and in its modules for any source, no class that reads files is imported."""
    defined = {
        node.name
        for module in in_room("checkpoints")
        for node in ast.walk(ast.parse(file_of(module).read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert defined > CONCRETE
    for module, found in IMPORTS.items():
        name = module.removeprefix("optimizer.checkpoints.")
        if name == module or name in FOR_ANY_SOURCE:
            wrong = {name for source, name in found if name in CONCRETE or source.split(".")[0] == "safetensors"}
            assert not wrong, f"{module} imports {wrong}"
    for room in ("similarity", "merging", "recipes", "pictures", "library"):
        for module in in_room(room):
            past = {source for source, _ in IMPORTS[module] if source.startswith("optimizer.checkpoints.")}
            assert not past, f"{module} imports {past} past the room's front"
            assert ("io", "FileIO") not in IMPORTS[module]
            assert not {"mmap"} & {source for source, _ in IMPORTS[module]}


def file_of(module):
    """Return the file of a module."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_exports_open_no_checkpoint():
    """Exports depend only on the recipe and on the names of its files."""
    for module in in_room("interchange.exports"):
        assert rooms_of(module) <= {"choices", "errors", "families", "library", "recipes", "interchange"}, module
        assert {name for source, name in IMPORTS[module] if source == "optimizer.library"} <= {"name_without_hash"}


def test_public_names_are_not_imported_inside():
    """No module inside the package imports the public names of `optimizer`."""
    for module, found in IMPORTS.items():
        wrong = {name for source, name in found if source == "optimizer" and name not in GROUND | set(ROOMS)}
        assert not wrong, f"{module} imports {wrong}"


def test_importing_the_package_is_quick():
    """`import optimizer` and `dir(optimizer)` load no heavy library and no room."""
    code = "import sys, optimizer; dir(optimizer); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    names = set(loaded.stdout.split())
    heavy = {"torch", "optuna", "numpy", "scipy", "pandas", "matplotlib", "PIL", "diffusers", "transformers"}
    assert not (heavy | {"pydantic", "ruamel", "safetensors", "typer", "rich"}) & {name.split(".")[0] for name in names}
    assert {name for name in names if name.split(".")[0] == "optimizer"} == {"optimizer", "optimizer.version"}
