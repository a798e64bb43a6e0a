"""The calls into TensorRT, checked by mypy against the real bindings of several releases.

The libraries of the full TensorRT are not to be had without its maker's index, but the bindings are small wheels on
the package index. They are imported here over libraries of ten empty functions, made with the C compiler: enough for
mypy's stubgen to read every class and signature off them. Nothing of it is kept.
"""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "perfusion" / "tensorrt"
RELEASES = {"10.3": "10.3.0", "10.13": "10.13.3.9.post1", "11.4": "11.4.0.106"}
EMPTY = """
void *createInferBuilder_INTERNAL(void *a, int b) { return 0; }
void *createInferRefitter_INTERNAL(void *a, void *b, int c) { return 0; }
void *createInferRuntime_INTERNAL(void *a, int b) { return 0; }
void *createNvOnnxParserRefitter_INTERNAL(void *a, void *b, int c) { return 0; }
void *createNvOnnxParser_INTERNAL(void *a, void *b, int c) { return 0; }
void *getBuilderPluginRegistry(int a) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
void *getPluginRegistry(void) { return 0; }
int initLibNvInferPlugins(void *a, const char *b) { return 1; }
"""
UNSAID = {"get_error": "ParserError", "create_runtime_cache": "IRuntimeCache"}
"""What the bindings' own signatures do not say: what these calls give."""
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")

# What is annotated as Any in the package, since either TensorRT may be passed in.
PARAMETERS = {
    "builder": "trt.Builder",
    "config": "trt.IBuilderConfig",
    "runtime": "trt.Runtime",
    "tensor": "trt.ITensor",
}
RETURNS = {
    "_parsed": "tuple[trt.INetworkDefinition, trt.OnnxParser]",
    "_timing_cache": "trt.ITimingCache | None",
    "load_engine": "trt.ICudaEngine | Any",
    "_make_context": "trt.IExecutionContext | Any",
}  # until closed
ONLY_RTX = {  # calls made for TensorRT for RTX alone, behind `compiles`
    "create_runtime_config",
    *("create_runtime_cache", "set_runtime_cache"),
}

CALLING = ("build.py", "rtx.py", "logger.py", "deserialise.py", "execution.py")
"""The modules that take `trt`."""


class WithModule(ast.NodeTransformer):
    """A module that takes `trt` as a parameter, rewritten to import it, so that mypy knows what it is."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        for group in (node.args.args, node.args.kwonlyargs):
            for argument in [one for one in group if one.arg == "trt"]:
                at = group.index(argument)
                del group[at]
                if group is node.args.kwonlyargs:
                    del node.args.kw_defaults[at]
            for one in group:
                if one.annotation and ast.unparse(one.annotation) == "Any" and one.arg in PARAMETERS:
                    one.annotation = ast.parse(PARAMETERS[one.arg], mode="eval").body
        if node.name in RETURNS:
            node.returns = ast.parse(RETURNS[node.name], mode="eval").body
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        node.args = [one for one in node.args if not (isinstance(one, ast.Name) and one.id == "trt")]
        node.keywords = [one for one in node.keywords if one.arg != "trt"]
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        return None if ast.unparse(node) == "self._trt = trt" else self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        return ast.Name("trt", node.ctx) if ast.unparse(node) == "self._trt" else node


def rewritten(path: Path) -> str:
    tree = ast.parse(path.read_text())
    tree = ast.fix_missing_locations(WithModule().visit(tree))
    after = next(at for at, node in enumerate(tree.body) if isinstance(node, ast.ImportFrom)) + 1
    tree.body.insert(after, ast.parse("import tensorrt as trt").body[0])
    return ast.unparse(tree)


def repaired(stub: str) -> str:
    """What pybind's signatures cannot say, or say wrongly."""
    lines = []
    for line in stub.splitlines():
        if re.match(r"\s*def ", line):
            try:
                compile(line.strip(), "stub", "exec")
            except SyntaxError:  # a default before a parameter without one
                line = re.sub(r"\(self.*\) ->", "(self, *args: Any, **kwargs: Any) ->", line)
        if not re.match(r"bool: ", line):  # `trt.bool`, which hides Python's own in the whole stub
            lines.append(line)
    text = "\n".join(lines) + "\n__version__: str\ndef nptype(trt_type: DataType) -> type: ...\n"
    text = text.replace("typing.SupportsInt", "int").replace(
        "serialized_timing_cache: buffer", "serialized_timing_cache: Any"
    )
    text = re.sub(r"\b(min|opt|max|shape): Dims\b", r"\1: Any", text)  # any sequence of numbers is taken
    text = re.sub(
        r"(class IHostMemory:\n)", r"\1    def __buffer__(self, flags: int, /) -> memoryview: ...\n", text
    )
    for name, kind in UNSAID.items():
        text = re.sub(
            rf"def {name}\(self, \*args, \*\*kwargs\):", rf"def {name}(self, *args: Any) -> {kind}:", text
        )
    text = text.replace("logger: ILogger", "logger: Any")  # our subclass goes by the name of a protocol
    text = re.sub(r"(class Dims:\n)", r"\1    def __iter__(self) -> typing.Iterator[int]: ...\n", text)
    return "from typing import Any, ClassVar, Callable\nimport typing\n" + text


def checked(stubs: Path, folder: Path, names: tuple[str, ...]) -> list[str]:
    """What mypy has to say of our modules against a folder that holds `tensorrt/__init__.pyi`."""
    for path in [
        *PACKAGE.glob("*.py"),
        *(ROOT / "perfusion" / f"{one}.py" for one in ("errors", "files", "locking")),
    ]:
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(
            rewritten(path) if path.name in CALLING and path.parent == PACKAGE else path.read_text()
        )
    (folder / "perfusion" / "__init__.py").write_text("__version__ = '0'\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--no-incremental", "--check-untyped-defs"]
        + ["--disable-error-code=no-any-return", "--namespace-packages", "--explicit-package-bases"]
        + [f"perfusion/tensorrt/{name}" for name in names],
        cwd=folder,
        env={"MYPYPATH": f"{folder}:{stubs}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "error" in done.stdout or "Success" in done.stdout, done.stdout + done.stderr
    ours = tuple(f"perfusion/tensorrt/{name}:" for name in names)
    return [line for line in done.stdout.splitlines() if line.startswith(ours) and ": error:" in line]


@pytest.fixture(scope="module", params=RELEASES)
def stubs(request, tmp_path_factory):
    """A folder with the stubs of one release of the full TensorRT."""
    if shutil.which("cc") is None or not sys.platform.startswith("linux"):
        pytest.skip("stubs are read off the bindings on Linux, with a C compiler")
    folder = tmp_path_factory.mktemp(f"stubs-{request.param}")
    version = RELEASES[request.param]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run(
        [*pip, "--dest", str(folder), f"tensorrt-cu12-bindings=={version}"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(
            f"the bindings {version} cannot be had here: {done.stderr.strip().splitlines()[-1][:120]}"
        )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    (folder / "empty.c").write_text(EMPTY)
    for library in LIBRARIES:
        name = f"lib{library}.so.{version.partition('.')[0]}"
        source = ["empty.c"] if library == "nvinfer" else ["-x", "c", "/dev/null"]
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", name, *source]
        subprocess.run(command, cwd=folder, check=True)
    return stubs_of(
        "tensorrt_bindings.tensorrt", folder, {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    )


def stubs_of(module: str, folder: Path, environment: dict[str, str]) -> Path:
    """The stubs of a module that can be imported, as the package `tensorrt` below a folder."""
    # compiled with mypyc, it cannot be run by -m
    code = "import sys; from mypy.stubgen import main; main(sys.argv[1:])"
    stubgen = [sys.executable, "-c", code, "--inspect-mode", "-m", module, "-o", str(folder / "raw")]
    done = subprocess.run(
        stubgen, env=environment | {"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    raw = (folder / "raw" / (module.replace(".", "/") + ".pyi")).read_text()
    target = folder / "typed" / "tensorrt" / "__init__.pyi"
    target.parent.mkdir(parents=True)
    target.write_text(repaired(raw))
    return target.parents[1]


@pytest.fixture(scope="module")
def rtx_stubs(tmp_path_factory, rtx):
    return stubs_of("tensorrt_rtx_bindings.tensorrt_rtx", tmp_path_factory.mktemp("stubs-rtx"), {})


def test_every_module_that_is_given_tensorrt_is_among_those_checked():
    def uses(path):
        tree = ast.parse(path.read_text())
        given = {"trt"} & {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        called = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("trt", "self._trt")
        }
        return given and called - {"__version__"}

    assert {path.name for path in PACKAGE.glob("*.py") if uses(path)} == set(CALLING)


@pytest.mark.slow
def test_every_call_to_build_and_to_run_exists_in_the_release(stubs, tmp_path):
    complaints = checked(stubs, tmp_path, tuple(name for name in CALLING if name != "rtx.py"))
    serious = [line for line in complaints if not any(f'"{name}"' in line for name in ONLY_RTX)]
    assert not serious, "\n".join(serious)


@pytest.mark.slow
def test_every_call_exists_in_tensorrt_for_rtx(rtx_stubs, tmp_path):
    complaints = checked(rtx_stubs, tmp_path, CALLING)
    assert not complaints, "\n".join(complaints)


GONE = {
    "build.py": ("build_serialized_network", "WORKSPACE", "node_operator", "get_dimension_name", "set_shape"),
    "rtx.py": ("set_compute_capability",),
    "logger.py": ("INTERNAL_ERROR",),
    "deserialise.py": ("deserialize_cuda_engine",),
    "execution.py": (
        "execute_async_v3",
        "device_memory_size_v2",
        "get_tensor_mode",
        "deserialize",
        "set_runtime_cache",
    ),
}
"""A call or a name of each kind of TensorRT's objects, by the module that uses it."""


@pytest.mark.slow
def test_a_call_that_is_not_there_is_found_in_every_module(rtx_stubs, tmp_path, monkeypatch):
    (tmp_path / "broken").mkdir()
    original = rewritten

    def without(path):
        text = path.read_text()
        for name in GONE[path.name]:
            assert re.search(rf"\.{name}\b", text)
            text = re.sub(rf"\.{name}\b", f".{name}_gone", text)
        broken = tmp_path / "broken" / path.name
        broken.write_text(text)
        return original(broken)

    assert set(GONE) == set(CALLING)
    monkeypatch.setattr(sys.modules[__name__], "rewritten", without)
    complaints = checked(rtx_stubs, tmp_path, CALLING)
    for module, names in GONE.items():
        for name in names:
            assert any(module in line and f'"{name}_gone"' in line for line in complaints), (module, name)
