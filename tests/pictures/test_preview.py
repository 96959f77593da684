"""Contact sheets of target, candidates and sources, compared with pictures drawn by diffusers."""

import hashlib
import json
import runpy
import socket
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from optimizer.cli import main
from optimizer.errors import InputError
from optimizer.families import load_layout, load_tokenizer, pipeline_folder
from optimizer.pictures import Preview, preview
from optimizer.recipes import load_recipe

DEMO = Path(__file__).parents[2] / "studies" / "demo"
TARGET, MODELS, HALF = DEMO / "target.safetensors", DEMO / "models", DEMO / "answer" / "half.yaml"
BASE, NO_VAE = MODELS / "base.safetensors", MODELS / "outline.safetensors"
PROMPTS, SEEDS, STEPS = ("a digit three", ""), (1, 2), 3
ENCODER, VAE = "cond_stage_model.", "first_stage_model."


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Preview, Path]:
    """Return a preview of a recipe and a checkpoint without VAE, and the path of its sheet."""
    sheet = tmp_path_factory.mktemp("sheets") / "sheet.png"
    return preview(TARGET, [HALF, NO_VAE], sheet, prompts=PROMPTS, seeds=SEEDS, steps=STEPS), sheet


def by_diffusers(
    tensors: dict[str, torch.Tensor],
    folder: Path,
    *,
    prompts: tuple[str, ...] = PROMPTS,
    seeds: tuple[int, ...] = SEEDS,
) -> tuple[list[torch.Tensor], list[Image.Image]]:
    """Return the final latents and pictures of diffusers' single-file loader and pipeline, one picture at a time."""
    path = folder / "for-diffusers.safetensors"
    save_file(tensors, path)
    with warnings.catch_warnings(action="ignore"):
        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_single_file(
            str(path), config=str(pipeline_folder("digits")), local_files_only=True, torch_dtype=torch.float32
        )
        pipeline.set_progress_bar_config(disable=True)

        def draw(kind: str) -> list[Any]:
            return [
                pipeline(
                    prompt, num_inference_steps=STEPS, guidance_scale=2.5, output_type=kind,
                    latents=torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)),
                ).images[0]
                for prompt in prompts
                for seed in seeds
            ]  # fmt: skip

        return draw("latent"), draw("pil")


def distances(
    drawn: tuple[list[torch.Tensor], list[Image.Image]], target: tuple[list[torch.Tensor], list[Image.Image]]
) -> tuple[list[float], list[float]]:
    """Return the root mean square differences of latents and of pixels in [0, 1]."""
    pairs = [(a.numpy().astype(float), b.numpy().astype(float)) for a, b in zip(drawn[0], target[0], strict=True)]
    shown = [(np.asarray(a) / 255, np.asarray(b) / 255) for a, b in zip(drawn[1], target[1], strict=True)]
    latent, pixel = ([float(np.sqrt(((a - b) ** 2).mean())) for a, b in each] for each in (pairs, shown))
    return latent, pixel


def with_vae_of(tensors: dict[str, torch.Tensor], donor: Path) -> dict[str, torch.Tensor]:
    """Return the tensors with the VAE of another file."""
    return tensors | {name: value for name, value in load_file(donor).items() if name.startswith(VAE)}


def where(picture: Image.Image, sheet: np.ndarray) -> list[tuple[int, int]]:
    """Return the upper left corners (x, y) at which a sheet shows a picture, enlarged to 128 pixels."""
    enlarged = np.asarray(picture.resize((128, 128), Image.Resampling.BICUBIC))
    tall, wide = sheet.shape[0] - 127, sheet.shape[1] - 127
    fits = np.ones((tall, wide), bool)
    for y, x in ((0, 0), (40, 70), (64, 64), (90, 50), (127, 127)):
        fits &= (sheet[y : y + tall, x : x + wide] == enlarged[y, x]).all(2)
    return [(x, y) for y, x in np.argwhere(fits).tolist() if (sheet[y : y + 128, x : x + 128] == enlarged).all()]


def run(*arguments: object) -> int:
    """Run a command and return its exit code."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


@pytest.mark.slow
def test_distances_are_those_of_diffusers(found: tuple[Preview, Path], tmp_path: Path) -> None:
    """Distances of a merge, a file without VAE and a source equal those of diffusers' latents and pictures."""
    preview_of, _ = found
    bold, slanted = (load_file(MODELS / f"{name}.safetensors") for name in ("bold", "slanted"))
    half = {
        name: (0.5 * value.float() + 0.5 * slanted[name].float()).half() if value.dtype == torch.float16 else value
        for name, value in bold.items()
    }
    target = by_diffusers(load_file(TARGET), tmp_path)
    expected = {
        "half.yaml": half, "outline.safetensors": with_vae_of(load_file(NO_VAE), TARGET), "bold": bold,
    }  # fmt: skip

    columns = {column.name: column for column in preview_of.others}
    assert [(column.role, name) for name, column in columns.items()] == [
        ("candidate", "half.yaml"), ("candidate", "outline.safetensors"), ("source", "bold"), ("source", "slanted"),
    ]  # fmt: skip
    for name, tensors in expected.items():
        latent, pixel = distances(by_diffusers(tensors, tmp_path), target)
        assert preview_of.latent_distances(columns[name]) == pytest.approx(latent, rel=1e-3)
        assert preview_of.pixel_distances(columns[name]) == pytest.approx(pixel, rel=1e-2)
    assert preview_of.notes == ("outline.safetensors has no VAE: drawn with that of target.safetensors",)


def test_sheet_shows_each_picture_in_its_place(found: tuple[Preview, Path]) -> None:
    """Pictures appear on the sheet in the order of columns and rows, with text below all but the target's."""
    preview_of, path = found
    with Image.open(path) as opened:
        sheet = np.asarray(opened)

    corners = {}
    for column, of_column in enumerate((preview_of.target, *preview_of.others)):
        for row, drawn in enumerate(of_column.drawn):
            (corners[column, row],) = where(drawn.picture, sheet)
    across = [corners[column, 0][0] for column in range(5)]
    down = [corners[0, row][1] for row in range(4)]
    assert across == sorted(set(across))
    assert down == sorted(set(down))
    assert corners == {(column, row): (across[column], down[row]) for column in range(5) for row in range(4)}
    for (column, _), (x, y) in corners.items():
        below = sheet[y + 128 : y + 128 + 40, x : x + 128]
        assert (below < 128).any() == (column > 0)
        assert (sheet[y + 128 + 40 : y + 128 + 44, x : x + 128] == 255).all()
    assert (sheet[:, -4:] == 255).all()


def test_every_column_has_the_same_noise(found: tuple[Preview, Path]) -> None:
    """All seeds of the first prompt come before the second; a sheet of one prompt and seed has the same picture."""
    preview_of, path = found
    alone = preview(
        TARGET, [NO_VAE], path.parent / "alone.png", prompts=[PROMPTS[1]], seeds=[SEEDS[1], SEEDS[1]], steps=STEPS
    )

    assert [(drawn.prompt, drawn.seed) for drawn in preview_of.target.drawn] == [(p, s) for p in PROMPTS for s in SEEDS]
    (drawn,) = alone.target.drawn
    assert torch.allclose(drawn.latents, preview_of.target.drawn[3].latents, atol=1e-4)
    assert alone.latent_distances(alone.others[0]) == pytest.approx(
        preview_of.latent_distances(preview_of.others[1])[3:], rel=1e-3
    )


def test_the_encoder_may_come_from_another_file(tmp_path: Path) -> None:
    """With `encoder_from`, a candidate draws as if it contained that text encoder, and a note names the file."""
    bold = MODELS / "bold.safetensors"
    swapped = load_file(bold) | {name: value for name, value in load_file(TARGET).items() if name.startswith(ENCODER)}
    found = preview(
        TARGET, [bold], tmp_path / "s.png", prompts=PROMPTS[:1], seeds=SEEDS, steps=STEPS, encoder_from=TARGET
    )

    (candidate,) = found.others
    latents, pictures = by_diffusers(swapped, tmp_path, prompts=PROMPTS[:1])
    assert torch.allclose(torch.stack([drawn.latents for drawn in candidate.drawn]), torch.stack(latents), atol=1e-4)
    # A value near a rounding boundary may fall to either side.
    assert np.abs(np.asarray(candidate.drawn[0].picture, int) - np.asarray(pictures[0], int)).max() <= 1
    assert found.notes == ("text encoder of all columns: target.safetensors",)
    unlike = preview(TARGET, [bold], tmp_path / "s.png", prompts=PROMPTS[:1], seeds=SEEDS, steps=STEPS)
    assert not torch.allclose(unlike.others[0].drawn[0].latents, candidate.drawn[0].latents, atol=1e-2)


def test_a_file_without_an_encoder_needs_another(tmp_path: Path) -> None:
    """A file without text encoder is refused with advice, and draws with another file's text encoder."""
    path, sheet = tmp_path / "unet.safetensors", tmp_path / "s.png"
    save_file({name: value for name, value in load_file(BASE).items() if not name.startswith(ENCODER)}, path)

    with pytest.raises(InputError, match=r"unet.safetensors: has no text encoder .*`encoder_from=FILE`"):
        preview(TARGET, [path], sheet, prompts=["one"], steps=1)
    found = preview(TARGET, [path, BASE], sheet, prompts=["one"], steps=1, encoder_from=BASE)
    assert found.latent_distances(found.others[0]) == found.latent_distances(found.others[1])


def test_formats_draw_alike(tmp_path: Path) -> None:
    """A .ckpt with older key names draws like the same .safetensors; files of the same name show their folders."""
    for folder, name in (("a", "base.ckpt"), ("b", "base.safetensors"), ("c", "base.safetensors")):
        (tmp_path / folder).mkdir()
        tensors = load_file(BASE)
        if name.endswith(".ckpt"):
            older = {key.replace("transformer.text_model.", "transformer."): value for key, value in tensors.items()}
            torch.save({"state_dict": older}, tmp_path / folder / name)
        else:
            save_file(tensors, tmp_path / folder / name)
    # Two names lack their extensions, and `c` is only in a folder of `folders`.
    candidates = [tmp_path / "a" / "base", tmp_path / "b" / "base.safetensors", Path("c/base")]
    found = preview(BASE, candidates, tmp_path / "s.png", prompts=["two"], seeds=[5], steps=1, folders=[tmp_path])

    assert [column.name for column in found.others] == ["a/base", "b/base.safetensors", "c/base"]
    assert [found.latent_distances(column) for column in found.others] == [(0.0,)] * 3
    assert [found.pixel_distances(column) for column in found.others] == [(0.0,)] * 3


def test_sources_are_shown_once(tmp_path: Path) -> None:
    """A source that is already a column, or in several recipes, is shown once; `with_sources=False` shows none."""
    again = tmp_path / "again.yaml"
    again.write_text(
        f"models: {{b: {{file: '{MODELS / 'bold'}'}}, s: {{file: '{MODELS / 'slanted'}'}}, o: {{file: '{BASE}'}}}}\n"
        "steps:\n  - {name: X, mode: weight_sum, a: b, b: s, alpha: 0.2}\n"
        "  - {name: unused, mode: weight_sum, a: b, b: o, alpha: {search: [0, 1]}}\noutput: X\n",
        encoding="utf-8",
    )
    slanted = MODELS / "slanted.safetensors"

    options = {"prompts": ["two"], "steps": 1}
    found = preview(TARGET, [again, HALF, slanted], tmp_path / "s.png", **options)
    assert [column.name for column in found.others] == ["again.yaml", "half.yaml", "slanted.safetensors", "b"]
    found = preview(TARGET, [again], tmp_path / "s.png", with_sources=False, **options)
    assert [column.name for column in found.others] == ["again.yaml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.yaml", "s.png"]


@pytest.mark.parametrize("problem", ["nan", "shape", "small disk"])
def test_failure_leaves_everything_as_it_was(tmp_path: Path, problem: str, request: pytest.FixtureRequest) -> None:
    """A failure while drawing or merging is one line too; the old sheet stays, temporary files do not."""
    folder = request.getfixturevalue("small_disk") if problem == "small disk" else tmp_path
    sheet, candidate, words = folder / "s.png", tmp_path / "bad.safetensors", ["bad.safetensors", "NaN"]
    sheet.write_bytes(b"old")
    tensors = load_file(BASE)
    if problem == "nan":
        tensors["model.diffusion_model.out.2.bias"].fill_(torch.nan)
    if problem == "shape":
        tensors["model.diffusion_model.out.2.weight"] = torch.zeros(4, 320, 3, 3)
        words = ["bad.safetensors", "does not fit", "digits", "[4, 320, 3, 3]"]
    save_file(tensors, candidate)
    if problem == "small disk":
        candidate, words = HALF, ["half.yaml", "temporary", "bytes are needed", "free"]
    before = sorted(folder.iterdir())

    with pytest.raises(InputError) as caught:
        preview(TARGET, [candidate], sheet, prompts=["one"], steps=1)
    (line,) = caught.value.problems
    assert all(word in line for word in words)
    assert sorted(folder.iterdir()) == before
    assert sheet.read_bytes() == b"old"


def test_prompts_that_look_alike_have_separate_rows(tmp_path: Path) -> None:
    """Prompts whose labels look alike have a row each; control characters are shown as text."""
    prompts = ["", " ", "(empty prompt)", "one", "one ", "one\x1b[2J"]
    found = preview(TARGET, [BASE], tmp_path / "s.png", prompts=prompts, steps=1)

    with Image.open(tmp_path / "s.png") as opened:
        sheet = np.asarray(opened)
    rows = [where(drawn.picture, sheet) for drawn in found.others[0].drawn]
    assert [drawn.prompt for drawn in found.target.drawn] == prompts
    assert len({y for corners in rows for _, y in corners}) == 6


def test_json_has_settings_and_distances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints only settings and distances; a warning about a prompt that is too long goes to stderr."""
    sheet = tmp_path / "sheet.png"
    long = "a digit " + "small " * 10 + "bold zero one"
    arguments = ("--prompt", long, "--prompt", "", "--seed", 3, "--steps", 1, "--negative", "inverted", "-o", sheet)
    assert run("preview", HALF, "--target", TARGET, *arguments, "--no-sources", "--json") == 0

    written = capsys.readouterr()
    found = json.loads(written.out)
    assert {key: found[key] for key in ("pipeline", "steps", "guidance", "negative", "encoder_from")} == {
        "pipeline": "digits", "steps": 1, "guidance": 2.5, "negative": "inverted", "encoder_from": None,
    }  # fmt: skip
    assert found["target"] == {"name": "target.safetensors", "file": str(TARGET), "vae_from": None}
    (column,) = found["columns"]
    assert (column["name"], column["role"], column["file"]) == ("half.yaml", "candidate", str(HALF))
    assert [(picture["prompt"], picture["seed"]) for picture in column["pictures"]] == [(long, 3), ("", 3)]
    for kind in ("latent", "pixel"):
        assert column[kind] == pytest.approx(sum(picture[kind] for picture in column["pictures"]) / 2)
        assert column[kind] > 0
    (line,) = written.err.splitlines()
    assert line.startswith("blockfit: warning: the prompt 'a digit small")
    # 15 words and two special tokens; the demo's text encoder takes 16 tokens.
    assert "has 15 tokens, the text encoder takes 14" in line
    assert line.endswith("zero' is cut off") or "bold zero' is cut off" in line
    with Image.open(sheet) as drawn:
        assert drawn.width > 2 * 128


def test_the_table_has_mean_distances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints a table of mean distances and the sheet's path; its help defines the distances."""
    sheet = tmp_path / "sheet.png"
    assert run("preview", BASE, NO_VAE, "--target", TARGET, "--prompt", "one", "--steps", 1, "-o", sheet) == 0
    shown = capsys.readouterr().out
    for words in ("base.safetensors", "latent", "pixel", f"sheet: {sheet}", "outline.safetensors has no VAE"):
        assert words in shown

    assert run("preview", "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("Examples: blockfit preview ", "root mean square difference of the final latents", "RGB in [0, 1]"):
        assert words in shown


def test_noted_hashes_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe is drawn only from files with the noted hashes; --no-verify accepts others."""
    text = HALF.read_text(encoding="utf-8")
    models = load_recipe(HALF).models
    for model in models.values():
        text = text.replace(model.file, (HALF.parent / model.file).resolve().as_posix())
    name, file = next((name, (HALF.parent / model.file).resolve()) for name, model in models.items())
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    noted = text.replace(f"file: {file.as_posix()}", f'file: {file.as_posix()}, sha256: "{"0" * 64}"', 1)
    assert noted != text
    (tmp_path / "half.yaml").write_text(noted, encoding="utf-8")
    arguments = ("--target", TARGET, "--prompt", "x", "--steps", 1, "--no-sources", "-o", tmp_path / "sheet.png")

    assert run("preview", tmp_path / "half.yaml", *arguments) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert f"half.yaml: models.{name}.sha256: 0000000000 is noted, but {file} has the hash {digest[:10]}: " in line
    assert not (tmp_path / "sheet.png").exists()
    assert run("preview", tmp_path / "half.yaml", *arguments, "--no-verify") == 0
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{tmp}/none.safetensors",), ["none.safetensors: no such file"]),
        (("{tmp}/none.yaml",), ["none.yaml: no such file"]),
        ((str(DEMO),), ["demo: is a folder", "best.yaml"]),
        ((str(DEMO / "recipe.yaml"),), ["recipe.yaml: steps.TEMP1.alpha, steps.TEMP2.alpha: free on BASE,IN00-IN11,"]),
        ((str(DEMO / "recipe.yaml"),), ["and only numbers can be drawn; fit the recipe first (blockfit fit STUDY)"]),
        (("{tmp}/cut.safetensors",), ["cut.safetensors: truncated"]),
        (("{tmp}/inpainting.safetensors",), ["inpainting.safetensors", "9 input channels"]),
        (("{tmp}/tokens.safetensors",), ["tokens.safetensors", "30 tokens"]),
        ((str(BASE), "--target", str(HALF)), ["--target", "half.yaml is a recipe", "blockfit merge"]),
        ((str(BASE), "--target", str(NO_VAE)), ["outline.safetensors: has no VAE", "--vae-from"]),
        ((str(BASE), "--vae-from", str(NO_VAE)), ["outline.safetensors: holds no VAE"]),
        ((str(BASE), "--encoder-from", "{tmp}/none.ckpt"), ["--encoder-from: ", "none.ckpt: no such file"]),
        ((str(BASE), "--seed", "-1"), ["--seed"]),
        ((str(BASE), "--steps", "0"), ["--steps"]),
        ((str(BASE), "--steps", "1001"), ["--steps"]),
        ((str(BASE), "--guidance", "0.5"), ["--guidance: received 0.5", "at least 1"]),
        ((str(BASE), "--guidance", "nan"), ["--guidance: received nan"]),
        ((str(BASE), "--device", "tpu"), ["--device", "tpu"]),
        ((str(BASE), "-o", "{tmp}/s.jpg"), ["s.jpg", ".png"]),
        ((str(BASE), "-o", "{tmp}/nowhere/s.png"), ["nowhere does not exist"]),
    ],
)
def test_bad_input_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: list[str]
) -> None:
    """Input that cannot be drawn is one line that names it, with exit code 2; the old sheet stays."""
    base = load_file(BASE)
    embedding = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    made = {
        "inpainting": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(16, 9, 3, 3)},
        "tokens": {embedding: torch.zeros(30, 32)},
        "cut": {},
    }
    for name, changes in made.items():
        if any(name in argument for argument in arguments):
            save_file(base | changes, tmp_path / f"{name}.safetensors")
    if (cut := tmp_path / "cut.safetensors").exists():
        cut.write_bytes(cut.read_bytes()[:-1000])
    (tmp_path / "s.png").write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    given = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    defaults = {"--target": TARGET, "--prompt": "one", "-o": tmp_path / "s.png"}
    missing = [part for option, value in defaults.items() if option not in given for part in (option, value)]

    assert run("preview", *given, *missing) == 2
    written = capsys.readouterr()
    (line,) = written.err.splitlines()
    assert written.out == ""
    assert line.startswith("blockfit: ")
    assert all(word in line for word in words)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "s.png").read_bytes() == b"old"


@pytest.mark.parametrize("steps", [201, 501, 1000])
def test_steps_that_begin_late_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], write_sd1: Callable[..., Any], steps: int
) -> None:
    """Numbers of steps with which Stable Diffusion's sampler would not begin in pure noise are refused."""
    target = tmp_path / "target.safetensors"
    embedding = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    write_sd1(target, overrides={embedding: torch.zeros(49408, 8)})

    code = run("preview", target, "--target", target, "--prompt", "one", "--steps", steps, "-o", tmp_path / "s.png")

    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"blockfit: --steps: received {steps}; the sampler would not begin in pure noise")
    assert sorted(tmp_path.iterdir()) == [target]


def test_a_read_only_folder_is_refused(
    read_only: Callable[[dict[str, str]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """An output in a read-only folder is refused before drawing, and the old sheet stays."""
    folder = read_only({"s.png": "old"})
    arguments = ("--target", TARGET, "--prompt", "one", "--steps", 1000, "-o", folder / "s.png")

    assert run("preview", BASE, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "s.png: the folder cannot be written to" in line
    assert [path.read_text(encoding="utf-8") for path in folder.iterdir()] == ["old"]


def test_every_problem_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file that cannot be drawn has a line of its own."""
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "two")]
    assert (
        run("preview", *files, DEMO / "recipe.yaml", "--target", TARGET, "--prompt", "", "-o", tmp_path / "s.png") == 2
    )
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_draws_the_same(tmp_path: Path) -> None:
    """Distances in float16 on a GPU equal those in float32 on the CPU, to the precision of float16."""
    options: dict[str, Any] = {"prompts": PROMPTS, "seeds": SEEDS}
    on_cpu, on_gpu = (
        preview(TARGET, [HALF], tmp_path / f"{device}.png", device=device, **options) for device in ("cpu", "cuda")
    )
    for first, second in zip(on_cpu.others, on_gpu.others, strict=True):
        assert on_cpu.latent_distances(first) == pytest.approx(on_gpu.latent_distances(second), abs=0.05)
        assert on_cpu.pixel_distances(first) == pytest.approx(on_gpu.pixel_distances(second), abs=0.02)


@pytest.mark.full_size
@pytest.mark.timeout(3600)
def test_full_size_checkpoints_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full-size checkpoints draw 512 x 512 pictures with CLIP's tokenizer, equal to those of diffusers' loader."""
    scripts = Path(__file__).parents[2] / "studies" / "benchmarks"
    monkeypatch.syspath_prepend(str(scripts))
    maker = runpy.run_path(str(scripts / "make_checkpoints.py"))
    shapes = maker["FAMILIES"]["sd1"](1)
    for seed, name in enumerate(("target", "one")):
        maker["_write"](
            tmp_path / f"{name}.safetensors",
            load_layout("sd1"),
            shapes,
            lambda key, seed=seed: maker["_first"](key, shapes[key], seed),
        )
    target, prompt = tmp_path / "target.safetensors", "a cat, oil painting"

    found = preview(target, [tmp_path / "one"], tmp_path / "sheet.png", prompts=[prompt], steps=2)
    assert (found.pipeline, found.guidance) == ("sd1", 7.0)
    assert {drawn.picture.size for column in (found.target, *found.others) for drawn in column.drawn} == {(512, 512)}
    assert found.latent_distances(found.others[0])[0] > 0.1
    with warnings.catch_warnings(action="ignore"):
        from diffusers import StableDiffusionPipeline

        folder = pipeline_folder("sd1")
        pipeline = StableDiffusionPipeline.from_single_file(
            str(target), config=str(folder), local_files_only=True, tokenizer=load_tokenizer(folder)
        )
        noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
        drawn = pipeline(prompt, num_inference_steps=2, guidance_scale=7.0, latents=noise, output_type="latent")
    assert torch.allclose(found.target.drawn[0].latents, drawn.images[0], rtol=1e-3, atol=1e-3)
