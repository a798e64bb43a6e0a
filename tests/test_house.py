"""The house itself: what is installed, what imports what, and that every command answers."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

import perfusion
import perfusion.errors
from tests import filler_names, rooms
from tests.rooms import FOLDERS, ROOMS, ROOT, imports, modules

LINKS = FOLDERS[1:]
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
COMMANDS = dict(re.findall(r'^(perfusion-\w+) = "(perfusion\.commands\.\w+):main"$', PYPROJECT, re.M))
HEAVY = {
    *("numpy", "safetensors", "tokenizers", "PIL", "onnxruntime", "tensorrt"),
    *("torch", "diffusers", "transformers", "accelerate", "onnx", "onnxscript"),
}
TRAINING_ONLY = ("torch", "diffusers", "transformers", "accelerate", "onnx", "onnxscript")
WITHOUT_TORCH = (
    *("bundle", "concept", "devices", "judging", "pocket", "runtime", "sweep", "tensorrt", "commands"),
    *(
        "contact_sheet",
        "embedded",
        "errors",
        "files",
        "locking",
        "numerals",
        "onnx_runtime",
        "picture_input",
        "shell",
    ),
)
"""The rooms that work where torch is not installed: the folder is the promise."""
WITH_TORCH = ("perfusion.judging.clip_scorer", "perfusion.judging.local_model")
"""The modules of these rooms that read a user's CLIP folder with torch; nothing else imports them but when asked to."""


MODULES = modules()


def run_python(code, *arguments):
    """Run code in a fresh interpreter that sees this checkout."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_all_four_folders_have_modules():
    assert {name.split(".")[1] for name in MODULES if name.count(".") > 1} >= {
        "export",
        "runtime",
        "commands",
    }
    assert "perfusion.devices" in MODULES
    assert "perfusion.concept.concept_file" in MODULES


@pytest.mark.parametrize("name", LINKS)
def test_the_links_inside_the_package_are_relative(name):
    link = ROOT / "perfusion" / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../{name}"


def test_the_version_is_the_same_everywhere():
    assert f'version = "{perfusion.__version__}"' in PYPROJECT
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased" or headings[0] == perfusion.__version__


# --- what is installed


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what a build reads, so that a build leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("house") / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, copy / name)
    for name in FOLDERS:
        leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=leave)
    return copy


def build(checkout, kind, output):
    """Build a wheel or an sdist with the installed setuptools: no network, no isolation."""
    code = f"import sys, setuptools.build_meta as backend; backend.build_{kind}(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(output)], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = output.iterdir()
    return made


def expected_files():
    """What a wheel has to hold of the package."""
    files = {
        name.replace(".", "/") + "/__init__.py" for name, path in MODULES.items() if path.stem == "__init__"
    }
    files |= {name.replace(".", "/") + ".py" for name, path in MODULES.items() if path.stem != "__init__"}
    pocket = ROOT / "perfusion" / "pocket"
    data = [path for part in ("model", "scorer") for path in (pocket / part).rglob("*")]
    data += (ROOT / "perfusion" / "serving" / "studio").rglob("*")
    data += (ROOT / "perfusion" / "base" / "settings").rglob("*")
    return files | {str(path.relative_to(ROOT)) for path in data if path.is_file()} | {"perfusion/py.typed"}


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_a_wheel_holds_every_module_and_no_other_top_level_name(checkout, tmp_path):
    names = names_in(build(checkout, "wheel", tmp_path))
    inside = {name for name in names if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in inside} == {"perfusion"}
    assert expected_files() == inside
    licenses = {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert licenses == {"LICENSE", "NOTICE"}


def test_a_wheel_made_from_the_source_distribution_is_the_same(checkout, tmp_path):
    for folder in ("sdist", "unpacked", "wheel"):
        (tmp_path / folder).mkdir()
    with tarfile.open(build(checkout, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    names = names_in(build(unpacked, "wheel", tmp_path / "wheel"))
    assert {name for name in names if ".dist-info/" not in name} == expected_files()


# --- what imports what


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_a_room_works_where_torch_diffusers_transformers_and_onnx_are_not_installed(room):
    package = f"perfusion.{room}"
    members = [name for name in MODULES if name == package or name.startswith(f"{package}.")]
    members = [name for name in members if name not in WITH_TORCH]
    assert members
    code = (
        "import sys\n"
        f"for name in {TRAINING_ONLY}: sys.modules[name] = None\n"  # importing them is now an ImportError
        "import importlib\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
    )
    done = run_python(code, *members)
    assert done.returncode == 0, done.stderr


def test_the_block_of_the_test_above_does_block():
    assert "ModuleNotFoundError" in run_python("import sys; sys.modules['torch'] = None; import torch").stderr


APART = {"sweep": {"training", "export"}, "training": {"export", "devices", "runtime"}}
"""Rooms that must not import from one another, though the order would let them."""

NEVER_TORCH = (
    *("bundle", "concept", "contact_sheet", "devices", "embedded", "errors", "files"),
    *("pocket", "runtime", "sweep", "tensorrt"),
)
"""Rooms that do not import torch and its kin inside functions either."""


def test_the_page_shows_every_room_and_every_arrow():
    arrows = rooms.room_arrows()
    assert set(arrows) == set(ROOMS)
    page = rooms.PAGE.read_text(encoding="utf-8")
    assert rooms.drawing(arrows, ROOMS) in page, (
        "Look at the new arrow; python -m tests.rooms --write draws it."
    )
    assert all(f"`{room}`" in page for room in ROOMS)


def test_nothing_imports_upwards():
    arrows = rooms.room_arrows()
    assert rooms.upwards(arrows, ROOMS) == []
    for room, others in APART.items():
        assert not arrows[room] & others, room


def test_the_measure_of_arrows_finds_upward_ones_and_circles():
    arrows = {"roof": {"wall"}, "wall": {"floor"}, "floor": {"ground"}, "ground": {"wall"}}
    assert rooms.upwards(arrows, tuple(arrows)) == [("ground", "wall")]
    assert rooms.circles(arrows) == [{"wall", "floor", "ground"}]
    assert rooms.from_top_to_bottom(arrows)[0] == "roof"
    assert rooms.drawing({"roof": {"wall"}, "wall": set()}, ("roof", "wall")).splitlines() == [
        "         1  2",
        " 1 roof  \\  x",
        " 2 wall  .  \\",
    ]  # fmt: skip


def test_rooms_without_torch_do_not_import_it_inside_functions_either():
    for module, path in MODULES.items():
        if rooms.room_of(module) in NEVER_TORCH:
            assert not {name.split(".")[0] for name in imports(path)} & set(TRAINING_ONLY), module


def test_no_two_files_have_one_name():
    paths = [path for module, path in MODULES.items() if not module.startswith("perfusion.commands.")]
    names = Counter(path.name for path in paths if path.stem not in ("__init__", "__main__"))
    assert [name for name, number in names.items() if number > 1] == []


def test_names_are_nouns_and_seldom_fillers():
    counted = filler_names.count()
    assert filler_names.share(counted) <= 0.010, filler_names.report(counted)


def test_the_count_of_filler_names_sees_every_kind_of_binding():
    code = """
def function(one, *made, kept=1, **given):
    found = wanted = [read for asked, read in held]
    with open(name) as drawn:
        for taken, noun in drawn:
            (held := noun)
    self.found = mask
"""
    assert sorted(filler_names.bindings(ast.parse(code))) == sorted([*filler_names.FILLERS, "noun"])


def test_no_module_has_the_name_of_a_library_it_uses():
    for name in MODULES:
        if name in ("perfusion.diffusers", "perfusion.tensorrt"):
            continue  # named for the library they go with; the imports of the libraries are absolute
        assert name.rsplit(".", 1)[-1] not in HEAVY | {"json", "random", "logging", "utils", "common"}, name


def announced(tree):
    """What a module's __all__ lists, None where it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return set(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.count(".") < 2))
def test_public_functions_and_classes_are_exactly_those_announced(name):
    tree = ast.parse(MODULES[name].read_text())
    listed = announced(tree)
    if listed is None:
        return  # a command or a script: nothing of it is to be imported
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = {node.name for node in tree.body if isinstance(node, kinds) and not node.name.startswith("_")}
    assert public <= listed
    assert all(not word.startswith("_") or word == "__version__" for word in listed)


def test_the_package_gives_its_concept_on_demand_and_nothing_by_guess():
    assert {"Concept", "PerfusionError", "__version__"} <= set(dir(perfusion))
    assert perfusion.Concept.__module__ == "perfusion.concept.concept_file"
    with pytest.raises(AttributeError, match="no attribute 'Konzept'"):
        perfusion.Konzept  # noqa: B018


def test_every_error_is_a_perfusion_error_and_is_in_the_drawing():
    for name in perfusion.errors.__all__:
        assert issubclass(getattr(perfusion.errors, name), perfusion.PerfusionError)
        assert name in (perfusion.errors.__doc__ or "")


# --- every command answers


def test_the_commands_are_registered():
    names = ("train", "export", "generate", "inspect", "convert")
    assert {f"perfusion-{name}" for name in names} <= set(COMMANDS)


@pytest.mark.parametrize("argument", ["--help", "--version"])
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_command_answers_without_importing_anything_heavy(command, argument):
    code = (
        f"import sys\nfrom {COMMANDS[command]} import main\ncode = main([{argument!r}])\n"
        f"heavy = sorted(set(sys.modules) & {HEAVY!r})\n"
        "print('imported:', heavy, file=sys.stderr)\nsys.exit(code)\n"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "imported: []\n"
    expected = f"usage: {command}" if argument == "--help" else f"{command} {perfusion.__version__}\n"
    assert done.stdout.startswith(expected)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_wrong_command_line_is_exit_code_two_and_one_line(command):
    done = run_python(
        f"import sys; from {COMMANDS[command]} import main; sys.exit(main(['--no-such-option']))"
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"{command}: ")
    assert done.stderr.count("\n") == 1


# --- what is pinned and owed


def test_every_package_that_make_installs_is_pinned_and_nothing_else():
    listed = re.findall(
        r"^(?:dependencies|cpu|trt-rtx|train|export|serve|test|dev) = \[(.*?)\]$", PYPROJECT, re.M | re.S
    )
    named = {re.split(r"[><=\[ ]", text)[0] for group in listed for text in re.findall(r'"([^"]+)"', group)}
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.M))
    assert pinned == named - {"perfusion-edge"}
    assert "torch==2.13.0\n" in (ROOT / "constraints.txt").read_text()


def test_the_license_is_whole_and_every_picture_set_is_named():
    license_text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in license_text
    assert "END OF TERMS AND CONDITIONS" in license_text
    notice = (ROOT / "NOTICE").read_text()
    for name in ("Fluent Emoji", "Noto Emoji", "Twemoji", "EmojiOne", "FxEmojis", "unicode-emoji-json"):
        assert name in notice


@pytest.mark.parametrize("flags, expected", [([], "2 skipped"), (["--require-gpu"], "1 failed, 1 skipped")])
def test_require_gpu_turns_the_skip_of_a_gpu_test_into_a_failure(tmp_path, flags, expected):
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs one\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n@pytest.mark.gpu\ndef test_gpu():\n    pytest.skip('no GPU')\n\n"
        "def test_other():\n    pytest.skip('another reason')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *flags],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert expected in done.stdout, done.stdout + done.stderr


def test_every_file_that_make_bench_runs_is_a_script_or_imports_nothing_of_its_neighbours():
    for path in (ROOT / "benchmarks").glob("*.py"):
        text = path.read_text()
        if "__main__" in text:
            assert "\nfrom benchmarks" not in text.split("sys.path.insert(")[0], path
        else:
            assert "from benchmarks" not in text, f"{path} belongs into a folder of benchmarks"


def test_each_of_the_fifteen_properties_of_the_method_has_tests():
    marker = re.compile(r"^@pytest\.mark\.property\(number=(\d+)\)$", re.M)
    files = (ROOT / "tests" / "perfusion").rglob("test_*.py")
    marked = Counter(int(number) for path in files for number in marker.findall(path.read_text()))
    assert sorted(marked) == list(range(1, 16))
    assert min(marked.values()) >= 2, marked
