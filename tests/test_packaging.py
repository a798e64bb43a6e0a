"""What is published: the metadata, the extras on every kind of machine, the floors, the source distribution."""

import email
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
NAME = PROJECT["name"]

MACHINES = {
    "linux-x86_64": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "linux-aarch64": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "windows-x86_64": {"sys_platform": "win32", "platform_machine": "AMD64"},
    "windows-aarch64": {"sys_platform": "win32", "platform_machine": "ARM64"},
    "macos-aarch64": {"sys_platform": "darwin", "platform_machine": "arm64"},
}
"""Kinds of machines, as the markers of requirements speak of them."""

_X86 = {"linux-x86_64", "windows-x86_64"}
WHEELS = {
    "onnxruntime-gpu": _X86 | {"linux-aarch64"},
    "tensorrt": _X86 | {"linux-aarch64"},
    "tensorrt-rtx-cu13-bindings": _X86,
    "tensorrt-rtx-cu13-libs": _X86,
}
"""Where the packages that are not for every machine have wheels, as the package index lists them."""
NOWHERE = {("cuda", "windows-aarch64"), ("cuda12", "windows-aarch64"), ("trt", "windows-aarch64")}
"""Extras whose one package is missing there: pip's refusal says more than an extra that installs nothing."""


def requirements(extra):
    """An extra's requirements, those of the extras that it includes among them."""
    for text in EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == NAME:
            for inner in requirement.extras:
                yield from requirements(inner)
        else:
            yield requirement


def floors(texts):
    """The lowest version that each requirement allows."""
    found = {}
    for requirement in map(Requirement, texts):
        if requirement.name != NAME:
            (found[requirement.name],) = (
                one.version for one in requirement.specifier if one.operator == ">="
            )
    return found


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_asks_on_no_machine_for_what_has_no_wheel_there(extra, machine):
    asked = {
        one.name for one in requirements(extra) if not one.marker or one.marker.evaluate(MACHINES[machine])
    }
    missing = {name for name in asked if machine not in WHEELS.get(name, {machine})}
    assert not missing or (extra, machine) in NOWHERE


def test_tensorrt_for_rtx_is_asked_for_where_it_has_wheels():
    for requirement in requirements("trt-rtx"):
        assert requirement.marker is not None
        assert {name for name, one in MACHINES.items() if requirement.marker.evaluate(one)} == _X86


def test_what_make_installs_can_be_installed_on_every_machine():
    (extras,) = re.findall(r"^EXTRAS := (.+)$", (ROOT / "Makefile").read_text(), re.M)
    assert set(extras.split(",")) <= set(EXTRAS)
    assert not {(extra, machine) for extra in extras.split(",") for machine in MACHINES} & NOWHERE


def test_cuda_brings_its_libraries_with_it():
    for extra in ("cuda", "cuda12"):
        (requirement,) = requirements(extra)
        assert requirement.extras == {"cuda", "cudnn"}
    (old,) = requirements("cuda12")
    assert "1.26.0" in old.specifier and "1.27.0" not in old.specifier, "1.27 is the first for CUDA 13"


def test_the_page_of_the_index_has_what_it_shows():
    assert PROJECT["authors"] and PROJECT["dynamic"] == ["readme"]
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())
    named = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)}
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert oldest in named and min(named, key=lambda version: int(version[2:])) == oldest


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    """Makes the metadata that is published: of the project as it is, or with another address of its repository."""

    def make(source=None):
        copy = tmp_path_factory.mktemp("metadata") / "checkout"
        leave = shutil.ignore_patterns("__pycache__", "*.egg-info", "model", "scorer")
        for folder in ("perfusion", "export", "runtime", "devices"):
            shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=leave)
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
            shutil.copy(ROOT / name, copy / name)
        if source is not None:
            text = re.sub(r"^Source = .*\n", "", (copy / "pyproject.toml").read_text(), flags=re.M)
            named = text.replace("[project.urls]\n", f'[project.urls]\nSource = "{source}"\n')
            (copy / "pyproject.toml").write_text(named)
        code = "import setuptools.build_meta as backend; backend.prepare_metadata_for_build_wheel('.')"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (folder,) = copy.glob("*.dist-info")
        return email.message_from_string((folder / "METADATA").read_text("utf-8"))

    return make


def links_of(page):
    return re.findall(r"\]\(([^)]+)\)", page)


def test_no_link_of_the_indexs_page_leads_into_a_folder_that_is_not_there(metadata):
    page = metadata()
    assert page["Description-Content-Type"] == "text/markdown"
    text = page.get_payload()
    assert "## Install" in text and "[Perfusion](https://arxiv.org/abs/2305.01644)" in text
    assert all(link.startswith("https://") for link in links_of(text)), links_of(text)


def test_with_an_address_every_link_and_picture_of_the_indexs_page_leads_to_the_repository(metadata):
    text = metadata("https://forge.example/me/perfusion-edge").get_payload()
    links = [link for link in links_of(text) if link.startswith("https://forge.example/")]
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(links_of(text)) == len(links_of(readme)) and len(links) >= 10
    for link in links:
        kind, _, path = (
            link.removeprefix("https://forge.example/me/perfusion-edge/").split("#")[0].split("/", 2)
        )
        assert (ROOT / path).exists(), link
        assert (kind == "raw") == path.endswith(".png"), link


@pytest.fixture(scope="module")
def source_names(tmp_path_factory):
    """The names in a source distribution of the committed files and those to be."""
    copy = tmp_path_factory.mktemp("packaging") / "checkout"
    leave = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "docs", "benchmarks")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=leave)
    code = "import setuptools.build_meta as backend; backend.build_sdist('made')"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = (copy / "made").iterdir()
    with tarfile.open(made) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_a_source_distribution_holds_the_package_and_no_orphans(source_names):
    assert {
        "README.md",
        "setup.py",
        "LICENSE",
        "NOTICE",
        "pyproject.toml",
        "export/exporter.py",
    } <= source_names
    tops = {name.split("/")[0] for name in source_names if "/" in name}
    assert tops == {"perfusion", "export", "runtime", "devices", "perfusion_edge.egg-info"}


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="no clone of the repository"
)
def test_files_with_checksums_keep_their_bytes_in_every_clone():
    folders = ("perfusion/pocket/model", "perfusion/pocket/scorer", "tests/data")
    listed = subprocess.run(
        ["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    asked = [name for name in listed if name]
    told = subprocess.run(
        ["git", "check-attr", "text", "--", *asked], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert asked
    assert all(line.endswith(": text: unset") for line in told.stdout.splitlines()), told.stdout
