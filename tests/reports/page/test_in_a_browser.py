"""The report page in a real browser, opened from disk as users open it."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from axe_playwright_python.sync_playwright import Axe
from databases import sqlite_url
from pages import Page
from waiting import PATIENCE

from optimizer.cli import main
from optimizer.search import FitResult, fit
from optimizer.studies import load_study

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>{{ 7*7 }}\"'"
STEPS = 60
BLOCKS = [f"OUT{n:02}" for n in range(12)]


def report(folder: Path) -> Path:
    """Write the report of a study and return its path."""
    with pytest.raises(SystemExit) as left:
        main(["report", str(folder)])
    assert not left.value.code
    return folder / "report.html"


def write_study(folder: Path, steps: list[str], *, model: str = "x", license_: str = "MIT", trials: int = 3) -> None:
    """Write a study of consecutive steps with invented trials, without checkpoints."""
    quoted = [_yaml_text(step) for step in steps]
    lines = [
        f"models: {{base: {{file: base}}, {_yaml_text(model)}: {{file: x, license: {_yaml_text(license_)}}}}}",
        "steps:",
    ]
    for step, before in zip(quoted, ["base", *quoted], strict=False):
        lines.append(
            f"  - {{name: {step}, mode: add_difference, a: {before}, b: {_yaml_text(model)}, c: base, "
            "alpha: {search: [0, 1], blocks: OUT00-OUT11}}"
        )
    (folder / "recipe.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "study.yaml").write_text(
        f"recipe: recipe.yaml\ntarget: {{file: target}}\nstages: [{{name: s, strategy: stepwise, trials: {trials}}}]\n",
        encoding="utf-8",
    )
    uniform = optuna.distributions.FloatDistribution(0, 1)
    storage = optuna.storages.RDBStorage(sqlite_url(folder / "study.db"))
    for step in steps:
        study = optuna.create_study(study_name=f"s/{step}", storage=storage, direction="maximize")
        study.set_user_attr("blockfit:bound_to", {})
        for number in range(trials):
            value = 0.9 + 0.01 * number
            study.add_trial(
                optuna.trial.create_trial(
                    params={f"{step}.{block}": 0.1 * number + 0.01 * place for place, block in enumerate(BLOCKS)},
                    distributions={f"{step}.{block}": uniform for block in BLOCKS},
                    value=value,
                    user_attrs={"origin": HOSTILE, "block_scores": dict.fromkeys(BLOCKS, value)},
                )
            )
    storage.engine.dispose()


def _yaml_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@pytest.fixture(scope="module")
def written(finished_fit: FitResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a finished study."""
    copy = tmp_path_factory.mktemp("browser") / "study"
    shutil.copytree(finished_fit.study.folder, copy)
    return report(copy)


@pytest.fixture(scope="module")
def five(write_sd1: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a fit of five sources, in which some alphas are negative."""
    folder = tmp_path_factory.mktemp("five")
    base = write_sd1(folder / "base.safetensors", seed=0)
    names = ("amber", "bold", "curly", "dotted")
    for seed, name in enumerate((*names, "target"), start=1):
        write_sd1(folder / f"{name}.safetensors", seed=seed, around=base)
    steps = [
        f"  - {{name: T{n}, mode: add_difference, a: {f'T{n - 1}' if n else 'base'}, b: {name}, c: base, "
        "alpha: {search: [-1, 1]}}"
        for n, name in enumerate(names)
    ]
    models = ", ".join(f"{name}: {{file: {name}}}" for name in ("base", *names))
    (folder / "recipe.yaml").write_text("\n".join([f"models: {{{models}}}", "steps:", *steps, ""]), encoding="utf-8")
    (folder / "study.yaml").write_text(
        "recipe: recipe.yaml\ntarget: {file: target}\nstages: [{name: s, trials: 1, strategy: joint}]\n",
        encoding="utf-8",
    )
    fit(load_study(folder))
    return report(folder)


@pytest.fixture
def seen() -> list[str]:
    """The errors of a tab and its requests beyond the page itself."""
    return []


@pytest.fixture
def tab(browser: "Browser", seen: list[str]) -> "Iterator[Any]":
    """Open a file in a new tab; after the test, check that the tab had no errors."""
    contexts = []

    def opened(path: Path, *, grant: bool = False, script: str = "", **options: Any) -> "Tab":
        context = browser.new_context(**options)
        contexts.append(context)
        if grant:
            context.grant_permissions(["clipboard-read", "clipboard-write"])
        if script:
            context.add_init_script(script)
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", lambda message: seen.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: seen.append(f"error: {error}"))
        page.on("dialog", lambda dialog: seen.append(f"dialog: {dialog.message}"))
        page.on("request", lambda request: None if request.url == path.as_uri() else seen.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert seen == []


def test_every_copy_button_copies(tab: Any, written: Path) -> None:
    """Every copy button copies its text, confirms it, and works by keyboard."""
    page = tab(written, grant=True)
    buttons = page.locator("button[data-copy]")
    # On the first screen the recipe, merge and export; below the notation, each step's numbers and the commands.
    assert [button.is_visible() for button in buttons.all()] == [True] * 3 + [False] * (1 + 2 + 6)
    page.get_by_role("button", name="Open all").click()
    for button in buttons.all():
        assert button.is_visible()
        button.click()
        page.wait_for_function("button => button.textContent === 'Copied'", arg=button.element_handle())
        text = page.locator(f"#{button.get_attribute('data-copy')}").text_content()
        assert page.evaluate("navigator.clipboard.readText()").replace("\r\n", "\n") == text
        assert page.get_by_role("status").text_content() == "Copied"

    first = buttons.first
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function("button => button.textContent === 'Copied'", arg=first.element_handle())
    assert page.evaluate("document.activeElement.dataset.copy") == "supermerger"
    page.wait_for_function("button => button.textContent === 'Copy for SuperMerger'", arg=first.element_handle())


def test_tables_copy_all_digits(tab: Any, written: Path) -> None:
    """The button below a table copies it with all digits, as lines of cells."""
    page = tab(written, grant=True)
    page.get_by_role("button", name="Open all").click()
    page.get_by_role("button", name="Copy table with all digits: Alphas by step and block").click()
    page.wait_for_function("document.getElementById('copied').textContent === 'Copied'")
    copied = [line.split("\t") for line in page.evaluate("navigator.clipboard.readText()").splitlines()]
    expected = Page.of(written).figures["Alphas by step and block"]
    assert [[cell.split() for cell in line] for line in copied] == [
        [cell.split() for cell in line] for line in expected
    ]
    assert any(len(cell) > 8 for cell in copied[1][1:])


@pytest.mark.parametrize(
    "refusal", ["navigator.clipboard.writeText = () => Promise.reject(new Error('refused'))", "gone"]
)
def test_copying_works_without_the_clipboard(tab: Any, written: Path, refusal: str) -> None:
    """Without the clipboard's interface the selection is copied instead."""
    keep = "window.read = navigator.clipboard.readText.bind(navigator.clipboard);"
    removal = "Object.defineProperty(Navigator.prototype, 'clipboard', {get: () => undefined})"
    page = tab(written, grant=True, script=keep + (removal if refusal == "gone" else refusal))
    page.get_by_role("button", name="Open all").click()
    button = page.locator("button[data-copy=numbers-2]")
    button.click()
    page.wait_for_function("button => button.textContent === 'Copied'", arg=button.element_handle())
    assert page.evaluate("window.read()") == page.locator("#numbers-2").text_content()
    assert page.evaluate("document.activeElement.dataset.copy") == "numbers-2"


def test_the_page_fits_a_phone(tab: Any, written: Path) -> None:
    """At 360 pixels the page does not scroll sideways; wide tables scroll in their boxes, also by keyboard.

    A line below such a table says that it goes on.
    """
    page = tab(written, viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_role("button", name="Open all").click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.wait_for_function(
        "[...document.querySelectorAll('.scroll')].every(box => (box.scrollWidth - box.clientWidth > 1) === "
        "!box.nextElementSibling.hidden)"
    )
    wide = page.evaluate(
        "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth).length"
    )
    assert wide > 0
    box = page.get_by_role("region", name="Alphas by step and block")
    box.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("box => box.scrollLeft > 0", arg=box.element_handle())


def test_dark_mode_is_followed(tab: Any, written: Path) -> None:
    """In the system's dark mode the page and its charts are dark; in print they are light."""

    def brightness(page: Any, element: str, what: str) -> float:
        colour = page.locator(element).first.evaluate(f"node => getComputedStyle(node).{what}")
        return sum(float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]) / 3

    light, dark = (tab(written, color_scheme=scheme) for scheme in ("light", "dark"))
    assert brightness(light, "body", "backgroundColor") > 240
    assert brightness(light, "body", "color") < 60
    assert brightness(dark, "body", "backgroundColor") < 40
    assert brightness(dark, "body", "color") > 200
    assert brightness(light, ".after", "fill") < brightness(dark, ".after", "fill")
    assert brightness(dark, "svg text.tick", "fill") > 140
    dark.emulate_media(media="print")
    assert brightness(dark, "body", "backgroundColor") == 255


def test_numbers_have_enough_contrast(tab: Any, five: Path) -> None:
    """Numbers in coloured cells have a contrast of at least 4.5 to 1 in both modes."""
    measure = """
    () => {
      const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
      canvas.canvas.width = canvas.canvas.height = 1;
      const luminance = (...colours) => {
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3)
          .map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const page = getComputedStyle(document.body).backgroundColor;
      return [...Array(21).keys()].flatMap(level => ['p', 'n'].map(sign => {
        const cell = document.createElement('span');
        cell.className = `swatch ${sign}${level}`;
        document.body.append(cell);
        const style = getComputedStyle(cell);
        const [a, b] = [luminance(page, style.backgroundColor), luminance(style.color)].sort((a, b) => b - a);
        cell.remove();
        return (a + .05) / (b + .05);
      }));
    }
    """
    for scheme in ("light", "dark"):
        ratios = tab(five, color_scheme=scheme).evaluate(measure)
        assert min(ratios) > 4.5, (scheme, ratios)


def test_axe_finds_nothing(tab: Any, written: Path) -> None:
    """The rules of axe find no fault in either mode, folded and open, and do find one that is made."""
    for scheme in ("light", "dark"):
        page = tab(written, color_scheme=scheme, viewport={"width": 390, "height": 844})
        for _ in range(2):
            assert Axe().run(page).response["violations"] == []
            page.locator("#unfold").click()
    page.evaluate("document.querySelector('input, button').setAttribute('aria-label', '')")
    page.evaluate("document.documentElement.lang = ''")
    assert Axe().run(page).violations_count > 0


def test_print_is_short(tab: Any, five: Path) -> None:
    """Of a fit of five sources at most four pages are printed; buttons are hidden, nothing is wider than the paper."""
    page = tab(five)
    pages = len(re.findall(rb"/Type /Page\b(?!s)", page.pdf(format="A4")))
    assert 1 < pages <= 4

    page.set_viewport_size({"width": 703, "height": 1000})
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#alphas[open], #blocks[open], #files[open]").count() == 3
    assert not any(button.is_visible() for button in page.locator("button").all())
    assert page.evaluate("document.documentElement.scrollWidth") <= 703
    cut = "[...document.querySelectorAll('table, pre, svg')].filter(e => e.getBoundingClientRect().right > 704).length"
    assert page.evaluate(cut) == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def test_what_a_reader_opened_is_printed(tab: Any, written: Path) -> None:
    """Parts that a reader opened are printed with the rest, and stay open afterwards."""
    page = tab(written)
    page.locator("#sources > summary").click()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#sources").is_visible()
    assert not page.locator("#history").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("#sources").evaluate("part => part.open")


def test_the_page_has_landmarks(tab: Any, written: Path) -> None:
    """The page has a language, one main heading, folded parts that a link into them opens, and labelled charts."""
    page = tab(written)
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.get_by_role("heading", level=1).count() == 1
    parts = page.locator("details.part").all()
    assert len(parts) >= 7
    assert not any(part.evaluate("part => part.open") for part in parts)
    page.evaluate("location.hash = 'curves'")
    page.wait_for_function("document.getElementById('history').open")
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0
    assert page.locator("svg:not([role=img]):not([aria-hidden=true])").count() == 0


def test_shapes_tell_their_figures(tab: Any, written: Path) -> None:
    """Each block of a chart has a tip with its figures in full."""
    page = tab(written)
    tips = page.locator("#blocks svg .hit title").all_text_contents()
    assert len(tips) >= 6
    assert all(re.fullmatch(r"\w+: .*after -?\d+\.\d{6} %.*", tip) for tip in tips)


def test_hostile_names_stay_text(tab: Any, tmp_path: Path) -> None:
    """Markup in names of steps and models and in licences is shown as text and has no effect."""
    write_study(tmp_path, [HOSTILE, "second"], model=f"model {HOSTILE}", license_=f"nc {HOSTILE}")
    page = tab(report(tmp_path))
    page.get_by_role("button", name="Open all").click()
    text = page.locator("body").inner_text()
    assert f"model {HOSTILE}" in text
    assert f"nc {HOSTILE}" in text
    assert page.locator("h4", has_text=HOSTILE).count() >= 1
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1


def test_large_studies_are_bounded(tmp_path: Path) -> None:
    """A page of many steps shows a part, counts the rest, and stays below two megabytes."""
    write_study(tmp_path, [f"STEP{number}" for number in range(STEPS)], trials=1)
    path = report(tmp_path)
    page = Page.of(path)
    assert path.stat().st_size < 2_000_000
    assert "20 more alphas are left out here; best.yaml contains all of them." in page.text
    assert "20 more maps are left out here" in page.text
    assert len(page.tables["Alphas by step and block"]) == STEPS + 1
    shown = sum(caption in BLOCKS for caption in page.captions)
    parts = page.text.split(" more alphas of ")
    assert shown + sum(int(part.rsplit(maxsplit=1)[-1]) for part in parts[:-1]) == STEPS * len(BLOCKS)
