"""Folders are rooms: imports between them point one way, no room is a hall, and each shows what others use of it."""

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
# What every room may import.
GROUND = frozenset({"choices", "errors", "events", "extras", "fonts", "printable", "threads", "version"})
# A room imports those of the lines above its own: none of its own line, and none below.
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
    {"cli"},
)
ROOMS = tuple(sorted(set().union(*ORDER)))
# What the order alone would allow.
NEVER = {
    "samplers": frozenset(ROOMS) - {"samplers"},
    "similarity": frozenset({"library"}),
    "studies": frozenset({"merging", "interchange", "pictures"}),
}
ABOVE_LIBRARIES = {"pandas", "matplotlib", "typer", "rich"}
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES} - {PACKAGE})


def name_of(path):
    """The dotted name of a module by its path."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def imports_in(path):
    """Every import of a module, wherever in it: (module, name), the name None for `import module`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports relatively"
            found += [(node.module, alias.name) for alias in node.names]
    return found


IMPORTS = {name_of(path): imports_in(path) for path in MODULES}
# What `optimizer` offers is imported when it is used, by its stub.
IMPORTS["optimizer"] += imports_in(PACKAGE / "__init__.pyi")


def in_room(name):
    """The modules of one room, those of its folders too."""
    return [module for module in IMPORTS if f"{module}.".startswith(f"optimizer.{name}.")]


def rooms_of(module):
    """The rooms, and modules of the ground, that a module imports from."""
    names = [
        name if source == "optimizer" else source.split(".")[1] for source, name in IMPORTS[module] if is_ours(source)
    ]
    return {name for name in names if name is not None}


def is_ours(source):
    """Whether a module is blockfit's own."""
    return source.split(".")[0] == "optimizer"


@pytest.mark.parametrize("room", ROOMS)
def test_one_way(room):
    """A room imports from those above it in the order, and from the ground."""
    (line,) = (number for number, names in enumerate(ORDER) if room in names)
    allowed = ({room} | GROUND).union(*ORDER[:line]) - NEVER.get(room, set())
    for module in in_room(room):
        assert rooms_of(module) <= allowed, f"{module} imports {rooms_of(module) - allowed}"


def test_every_folder_has_its_place_in_the_order():
    """The check looks at every folder and module of the package, and sees their imports."""
    assert {path.name for path in FOLDERS if path.parent == PACKAGE} == set(ROOMS)
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"} == GROUND
    assert {"recipes", "similarity", "studies"} <= {name for module in in_room("search") for name in rooms_of(module)}


def test_the_ground_imports_nothing_but_itself():
    """What all may use uses no room."""
    for name in GROUND:
        assert rooms_of(f"optimizer.{name}") <= GROUND


def test_trials_know_nothing_of_the_fit():
    """What lies in a folder below a room's own files does not import these; the page of a report, which does, does not
    go through the room's front.
    """
    for module in in_room("search.trials"):
        own = {source for source, _ in IMPORTS[module] if source.startswith("optimizer.search")}
        assert all(source.startswith("optimizer.search.trials") for source in own), module
    for inner in ("notation", "exports"):
        for module in in_room(f"interchange.{inner}"):
            own = {source for source, _ in IMPORTS[module] if source.startswith("optimizer.interchange")}
            assert all(
                source.startswith(("optimizer.interchange.notation", f"optimizer.interchange.{inner}"))
                for source in own
            )


@pytest.mark.parametrize("room", ["search", "reports", "cli", "demo", "analysis"])
def test_optuna_stays_behind_its_border(room):
    """Above `search.trials` trials are records of our own; only the dashboard, which is Optuna's, reads them as stored.

    What Optuna does not make public is named in one file.
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
    """Whether a node of a module's tree reads something private of a study, a trial or a storage of Optuna's."""
    if not isinstance(node, ast.Attribute):
        return False
    own = isinstance(node.value, ast.Name) and node.value.id == "self"
    return node.attr in ("_study_id", "_trial_id", "_backend") or (node.attr == "_storage" and not own)


def defined_in(source, name):
    """The module that a name is defined in, which other modules may pass on."""
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
    """No file imports itself by way of others, whatever it is called where it is imported from."""
    graph = {
        module: {defined_in(source, name) for source, name in found if is_ours(source) and name is not None} - {module}
        for module, found in IMPORTS.items()
        if module != "optimizer" and not is_front(module)
    }
    assert graph["optimizer.similarity.memory"] >= {"optimizer.errors", "optimizer.similarity.metric"}
    graphlib.TopologicalSorter(graph).prepare()


def is_front(module):
    """Whether a module is the `__init__` of a room."""
    return ROOT.joinpath(*module.split("."), "__init__.py").is_file()


def test_no_folder_holds_more_than_a_sixth():
    """Of the lines of all modules, no folder's own files hold more than a sixth."""
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    whole = sum(lines.values())
    for folder in FOLDERS:
        share = sum(count for path, count in lines.items() if path.parent == folder) / whole
        assert share <= 1 / 6, f"{folder}: {share:.1%}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: name_of(path / "__init__.py"))
def test_a_front_says_what_lives_there(folder):
    """Each `__init__` has a docstring of three lines at most, the command's excepted; it names what it imports."""
    front = folder / "__init__.py"
    tree = ast.parse(front.read_text(encoding="utf-8"))
    document = ast.get_docstring(tree)
    assert document
    if folder.name != "cli":
        assert len(document.splitlines()) <= 3
        passed_on = [name for _, name in IMPORTS[name_of(front)]]
        assert named_in(front) == sorted(passed_on, key=lambda name: (kind(name), name))


def named_in(front):
    """What an `__init__` has in `__all__`."""
    tree = ast.parse(front.read_text(encoding="utf-8"))
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return [name for found in lists for name in ast.literal_eval(found)]


def kind(name):
    """Constants come first, then classes, then functions, as ruff sorts them."""
    return 0 if name.isupper() else 1 if name[0].isupper() else 2


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: name_of(path / "__init__.py"))
def test_a_front_shows_no_more_than_others_use(folder):
    """Each name that a room shows is imported from it outside: by rooms, beside the package, or by tests of rooms."""
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
def test_libraries(room, libraries):
    """A room does not import the libraries that belong to others."""
    for module in in_room(room):
        wrong = {source for source, _ in IMPORTS[module] if source.split(".")[0] in libraries}
        assert not wrong, f"{module} imports {wrong}"


# What reads files, which checkpoints.reading alone puts behind the protocol.
CONCRETE = {"Checkpoint", "FileReader", "HeldFile", "SelectedTensors", "StoredTensorInfo", "TorchFile"}
# What of checkpoints works with any source.
FOR_ANY_SOURCE = {"configuration", "naming", "prediction", "recognition", "source", "zero_tensors", "zeros"}


def test_sources_are_known_by_their_protocol():
    """Nothing outside their room, and nothing in it that works with any source, imports a class that reads files."""
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
    """The file of a module."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_exports_open_no_checkpoint():
    """What a format says follows from the recipe alone, and from what its files are called."""
    for module in in_room("interchange.exports"):
        assert rooms_of(module) <= {"choices", "errors", "families", "library", "recipes", "interchange"}, module
        assert {name for source, name in IMPORTS[module] if source == "optimizer.library"} <= {"name_without_hash"}


def test_nothing_comes_in_by_the_front_door():
    """The package's own names, which come from all rooms, are for its users: nothing inside imports them."""
    for module, found in IMPORTS.items():
        wrong = {name for source, name in found if source == "optimizer" and name not in GROUND | set(ROOMS)}
        assert not wrong, f"{module} imports {wrong}"


def test_importing_the_package_is_quick():
    """`import optimizer` loads no heavy library, nor any room; nor does asking what names there are."""
    code = "import sys, optimizer; dir(optimizer); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    names = set(loaded.stdout.split())
    heavy = {"torch", "optuna", "numpy", "scipy", "pandas", "matplotlib", "PIL", "diffusers", "transformers"}
    assert not (heavy | {"pydantic", "ruamel", "safetensors", "typer", "rich"}) & {name.split(".")[0] for name in names}
    assert {name for name in names if name.split(".")[0] == "optimizer"} == {"optimizer", "optimizer.version"}
