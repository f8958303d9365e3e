"""The shape of the compiler: who may import whom, and what no file may know."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import write_library

from losscomp import catalogue
from losscomp.language import Loss, tensor

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "losscomp"
TEMPLATES = ROOT / "templates"

# From the bottom up; modules of one line do not import each other.
LAYERS = [
    "__init__ errors",
    "nodes ir cache render oracle.balls",
    "atoms inside schedule reuse compiler hierarchy oracle.jets oracle.results",
    "rewrite differentiate language place scaffold nvcc oracle.functions",
    "vectors lower plain plan doctor parts certificates targets.printer recurrence mathml keep",
    "check rules catalogue masses targets.c targets.numpy targets.torch build watch oracle.formulas",
    "targets.tables targets.c_side",
    "formula latex sampling conditioning sweeps targets.c_tables targets.numpy_tables targets.torch_tables targets.cuda oracle.problem",
    "pipeline targets.cuda_tables oracle.evaluate",
    "dense operators composite compose family",
    "composite_tables",
    "emit oracle",
    "verify show compare live article",
    "bench certify suggest checking curves",
    "svg usage",
    "braille pages",
    "docs plot",
    "cli",
    "__main__",
]
LEVEL = {module: level for level, names in enumerate(LAYERS) for module in names.split()}
# Function-level imports that reach up, each for a reason.
LAZY_UP = {
    ("build", "emit"), ("build", "catalogue"),       # a build that finds its cache needs no SymPy
    ("language", "live"), ("language", "check"), ("language", "latex"),      # what a definition does in a notebook
}


def modules() -> dict[str, Path]:
    """Every module of the package, by its name below the package; what a package below exports is a module of its name."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
            for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts != ("targets", "__init__.py")}


def imported(name: str, path: Path) -> list[tuple[str, bool]]:
    """The modules of the package that a module imports, and whether only inside a function."""
    tree = ast.parse(path.read_text())
    top = {id(n) for s in tree.body if not isinstance(s, ast.FunctionDef | ast.ClassDef) for n in ast.walk(s)}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            inside = [a.name.removeprefix("losscomp.") for a in node.names if a.name.startswith("losscomp.")]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").partition(".")[0] == "losscomp"):
            package = path.relative_to(PACKAGE).parent.parts
            base = package[:len(package) - node.level + 1] if node.level else []
            stem = (node.module or "").removeprefix("losscomp").removeprefix(".") if not node.level else node.module or ""
            start = [*base, *(stem.split(".") if stem else [])]
            full = [".".join([*start, a.name]) for a in node.names]
            inside = [f if f in modules() else ".".join(start) or "__init__" for f in full]
        else:
            continue
        found += [(m, id(node) not in top) for m in inside]
    return found


def test_every_module_has_a_layer() -> None:
    assert set(modules()) == set(LEVEL)


@pytest.mark.parametrize("name", sorted(LEVEL))
def test_imports_go_down(name: str) -> None:
    path = modules()[name]
    wrong = [(other, lazy) for other, lazy in imported(name, path) if LEVEL[other] >= LEVEL[name] and not (
        lazy and (name, other) in LAZY_UP)]
    assert not wrong, f"{name} imports {wrong}, which stand no lower"


def texts() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(p for p in TEMPLATES.rglob("*") if p.is_file() and "__pycache__" not in p.parts)])


def test_no_file_names_a_loss() -> None:
    losses = catalogue.load_all(catalogue.builtin_definitions())
    names = {*losses, *map(catalogue.module_name, losses.values())}
    pattern = re.compile(rf"\b({'|'.join(sorted(names))})\b")
    found = [f"{path.relative_to(ROOT)}:{n}: {hit.group()}" for path in texts()
             for n, line in enumerate(path.read_text().splitlines(), 1) if (hit := pattern.search(line))]
    assert not found


def test_no_file_names_a_place_of_the_machine() -> None:
    pattern = re.compile(r"/(work|root|home|tmp/venv)\b")
    found = [f"{path.relative_to(ROOT)}:{n}: {line}" for path in [*texts(), *sorted((ROOT / "definitions").rglob("*.py"))]
             for n, line in enumerate(path.read_text().splitlines(), 1) if pattern.search(line)]
    assert not found


WITHOUT_SYMPY = {"ir", "schedule", "errors", "render", "cache", "plan", "place", "compiler", "nvcc", "build", "cli"}


@pytest.mark.parametrize("name", sorted(WITHOUT_SYMPY | {m for m in LEVEL if m.startswith("targets")}))
def test_sympy_ends_before(name: str) -> None:
    """Neither the module nor anything that it imports at its top imports SymPy."""
    seen: set[str] = set()
    todo = [name]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        tree = ast.parse(modules()[module].read_text())
        for node in tree.body:
            roots = [a.name for a in node.names] if isinstance(node, ast.Import) else [
                node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not any(r.partition(".")[0] == "sympy" for r in roots), f"{name} -> {module}"
        todo += [m for m, lazy in imported(module, modules()[module]) if not lazy]


def python(code: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize("code", [
    "import sys, losscomp; assert 'sympy' not in sys.modules and 'numpy' not in sys.modules",
    ("import sys, losscomp.cli as c\ntry: c.main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
     "assert 'sympy' not in sys.modules"),
])
def test_help_is_quick(code: str) -> None:
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_emitted_library_stands_alone(tmp_path: Path) -> None:
    x = tensor("x")
    src = write_library([Loss(x**2, name="square", doc="A square.")], tmp_path, "alone")
    for path in src.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            roots = [a.name for a in node.names] if isinstance(node, ast.Import) else [
                node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert not {r.partition(".")[0] for r in roots} & {"sympy", "losscomp", "jinja2", "flint"}, path
    done = python("import sys; sys.path.insert(0, sys.argv[1])\nimport alone.numpy as t\nimport numpy as np\n"
                  "assert t.square(x=np.array([1., 3.])) == 5\nassert not {'sympy', 'losscomp'} & set(sys.modules)",
                  str(src), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
