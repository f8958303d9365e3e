"""losscomp build: what it does anew and what not, and that nothing it is interrupted by leaves half a library."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from filelock import FileLock

from losscomp import cache, compiler, emit, place, plan
from losscomp.build import Report, Talk, build, check
from losscomp.compiler import missing_torch
from losscomp.errors import BuildError, LosscompError
from losscomp.parts import PARTS, Part
from losscomp.plan import MANIFEST, Options
from losscomp.targets.c import GCC_FLAGS

build_module = import_module("losscomp.build")
ROOT = Path(__file__).resolve().parent.parent
DEFINITION = '''"""{title} of an error."""

from losscomp.language import {imports}Loss, tensor

x, y = tensor("x"), tensor("y", fixed=True)
{name} = Loss({formula})
'''
needs_compiler = pytest.mark.skipif(bool(compiler.missing()), reason=f"the C target is NOT TESTED: {compiler.missing()}")


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all tests, so that the same text is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("LOSSCOMP_CACHE", str(folder))
        patch.setenv("LOSSCOMP_QUICK", "0")                                 # it takes long to compile, and has tests of its own
        for name in ("CC", "CFLAGS", "LDFLAGS"):
            patch.delenv(name, raising=False)
        yield folder


def write(folder: Path, name: str, formula: str, imports: str = "") -> Path:
    """A definition file."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.py"
    path.write_text(DEFINITION.format(title=name.capitalize(), name=name, formula=formula, imports=imports))
    return path


@pytest.fixture
def defs(tmp_path: Path) -> Path:
    """Two tiny losses."""
    write(tmp_path / "defs", "square", "(x - y)**2")
    write(tmp_path / "defs", "absolute", "Abs(x - y)", "Abs, ")
    return tmp_path / "defs"


@pytest.fixture
def options(defs: Path) -> Options:
    """A build of them."""
    return Options(defs, defs.parent / "out", "tiny", jobs=2)


def sources_only(options: Options) -> Options:
    """The same without the C compiler, where that is not the point."""
    return Options(options.definitions, options.out, options.name, options.targets, options.only, options.jobs, compile=False)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a library, besides what git ignores."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.suffix != ".so" and place.STATE not in p.parts and "__pycache__" not in p.parts}


def times(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {path: (folder / path).stat().st_mtime_ns for path in tree(folder)}


def run(code: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=False, text=True, capture_output=True,
                          cwd=ROOT, env={**os.environ, **environment}, timeout=120)


BINARY = PARTS[0].path.format(name="tiny")
COMMAND = "import sys; from losscomp.cli import main; sys.exit(main(sys.argv[1:]))"


def arguments(options: Options, *more: str) -> list[str]:
    """The command line of a build."""
    return ["build", str(options.definitions), "--out", str(options.out), "--name", str(options.name), *more]


# What a build gives

@needs_compiler
def test_a_library_of_every_target(options: Options) -> None:
    report = build(options)
    assert (report.losses, report.emitted, report.linked) == (2, ("absolute", "square"), True)
    operators = () if missing_torch() else ("binding", "cuda", "schemas")
    assert report.compiled == ("_native", "absolute", *operators, "square", "tiny", "tiny_dense", "tiny_sums")
    done = run("import sys; sys.path.insert(0, sys.argv[1]); import numpy as np, tiny.c, tiny.numpy\n"
               "for L in (tiny.c, tiny.numpy):\n"
               "    print(L.square(np.array([3.0, 1.0]), np.array([1.0, 2.0])),\n"
               "          L.absolute.grad(np.array([3.0]), np.array([4.0])).x)",
               options.out / "src")
    assert done.stdout == "2.5 [-1.]\n2.5 [-1.]\n", done.stderr


@needs_compiler
def test_two_libraries_live_in_one_process(options: Options, tmp_path: Path) -> None:
    build(options)
    write(tmp_path / "other", "square", "(x - y)**2 / 2")
    build(Options(tmp_path / "other", tmp_path / "out2", "other"))
    done = run("import sys; sys.path[:0] = sys.argv[1:]; import numpy as np, tiny.c, other.c\n"
               "print(tiny.c.square(np.array([3.0]), np.array([0.0])), other.c.square(np.array([3.0]), np.array([0.0])))",
               options.out / "src", tmp_path / "out2" / "src")
    assert done.stdout == "9.0 4.5\n", done.stderr


def test_one_target_alone(options: Options) -> None:
    report = build(Options(options.definitions, options.out, "tiny", ("numpy",)))
    files = tree(options.out)
    assert not report.linked and not report.lacking
    assert not [path for path in files if "csrc" in path or "/c/" in path or path in ("setup.py", "CMakeLists.txt")]
    assert "src/tiny/numpy/kernels/square.py" in files


def test_targets_are_those_of_the_emitter() -> None:
    assert plan.TARGETS == emit.TARGETS


def test_a_file_is_a_folder_of_one(options: Options) -> None:
    assert build(Options(options.definitions / "square.py", options.out, "tiny", compile=False)).losses == 1
    assert "from square.py" in (options.out / "src/tiny/csrc/square.c").read_text()


def test_the_name_stays_what_it_was(options: Options) -> None:
    build(sources_only(options))
    assert build(Options(options.definitions, options.out, compile=False)).name == "tiny"


def test_a_library_may_lie_inside_its_definitions(defs: Path) -> None:
    inside = Options(defs, defs / "out", "tiny", compile=False)
    assert build(inside).losses == build(inside).losses == 2
    with pytest.raises(BuildError, match="among its definitions"):
        build(Options(defs, defs, "tiny", compile=False))


@pytest.mark.parametrize(("name", "why"), [
    ("class", "keyword"), ("2fast", "identifier"), ("my-lib", "identifier"), ("münchen", "identifier"), ("_own", "identifier"),
    ("json", "standard library"), ("numpy", "imports"), ("square", "name of the library"),
])
def test_bad_names(options: Options, name: str, why: str) -> None:
    with pytest.raises(BuildError, match=why):
        build(Options(options.definitions, options.out, name, compile=False))
    assert not options.out.exists()


def test_no_definitions(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no file or folder"):
        build(Options(tmp_path / "none", tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BuildError, match="losscomp new") as error:
        build(Options(tmp_path / "empty", tmp_path / "out"))
    assert "no definition" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_two_losses_of_one_name(options: Options) -> None:
    write(options.definitions / "more", "square", "x - y")  # type: ignore[operator]
    with pytest.raises(LosscompError, match=r"two losses named 'square', in more/square\.py and square\.py"):
        build(sources_only(options))


# What is not done twice

@needs_compiler
def test_nothing_to_do_imports_no_sympy_and_touches_nothing(options: Options) -> None:
    build(options)
    before, binary = times(options.out), (options.out / BINARY).stat().st_mtime_ns
    done = run("import sys; from losscomp.cli import main; code = main(sys.argv[1:])\n"
               "heavy = {'sympy', 'jinja2.compiler', 'cffi', 'numpy', 'torch'} & set(sys.modules) - {'jinja2.compiler'}\n"
               "print(sorted(heavy)); sys.exit(code)", *arguments(options))
    assert done.returncode == 0, done.stderr
    assert "2 losses, up to date" in done.stdout
    assert done.stdout.endswith("[]\n")
    assert times(options.out) == before
    assert (options.out / BINARY).stat().st_mtime_ns == binary


@needs_compiler
def test_one_changed_definition_is_all_that_is_done(options: Options, defs: Path) -> None:
    build(options)
    before = times(options.out)
    write(defs, "square", "3 * (x - y)**2")
    report = build(options)
    assert (report.emitted, report.compiled) == (("square",), ("square",))
    after = times(options.out)
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {MANIFEST, "src/tiny/numpy/kernels/square.py", "src/tiny/csrc/square.c", "src/tiny/losses/square.py",
                       "src/tiny/torch/composites/square.py", "src/tiny/torch/losses/square.py", "src/tiny/cuda/square.cu"}
    (defs / "square.py").write_text((defs / "square.py").read_text() + "# A remark.\n")
    report = build(options)
    assert (report.emitted, report.compiled, report.written) == (("square",), (), ())


@needs_compiler
def test_a_lost_binary_is_linked_from_the_cache(options: Options) -> None:
    build(options)
    (options.out / BINARY).unlink()
    report = build(options)
    assert (report.emitted, report.compiled, report.linked, report.written) == ((), (), True, ())


@needs_compiler
def test_other_flags_make_another_binary(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    build(options)
    monkeypatch.setenv("CFLAGS", "-O1")
    assert build(options).compiled
    assert build(options).idle


def test_a_cache_that_cannot_be_written_is_no_error(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSCOMP_CACHE", "/dev/null/cache")
    assert build(sources_only(options)).emitted == ("absolute", "square")


def test_the_cache_keeps_to_its_limit_and_to_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOSSCOMP_CACHE", str(tmp_path))
    (tmp_path / "mine.txt").write_text("mine" * 100)
    store = cache.Store("objects")
    for age, key in enumerate(["aa1", "bb2", "cc3"]):
        store.put(key, b"x" * 10)
        os.utime(store.path(key), (age, age))
    cache.prune(limit=20)
    assert [store.get(key) is not None for key in ("aa1", "bb2", "cc3")] == [False, True, True]
    assert (tmp_path / "mine.txt").exists()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("regression/huber_loss.py", "likelihood/poisson_nll_loss.py", "classification/nll_loss.py"):
        target = tmp_path / "defs" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "definitions" / name, target)
    found = []
    for seed, jobs in (("1", "1"), ("2", "2")):
        out = tmp_path / f"out{seed}"
        done = run(COMMAND, "build", tmp_path / "defs", "--out", out, "--no-compile", "--jobs", jobs,
                   PYTHONHASHSEED=seed, LOSSCOMP_CACHE=str(tmp_path / f"cache{seed}"))
        assert done.returncode == 0, done.stderr
        found.append(tree(out))
    assert found[0] == found[1]
    assert str(tmp_path) not in found[0][MANIFEST].decode()


# Being interrupted

CRASH = """
import os, signal, sys
from losscomp import place, compiler
from losscomp.cli import main
point, number = sys.argv[1], int(sys.argv[2])
def crash(name):
    if name.startswith(point):
        os.kill(os.getpid(), number)
place.checkpoint = crash
link = compiler.compile_library
compiler.compile_library = lambda *a: (crash("compile"), link(*a))[1]
sys.exit(main(sys.argv[3:]))
"""


@needs_compiler
@pytest.mark.parametrize(("point", "happened"), [
    ("compile", False), ("staged", False), ("journal", True), ("moved", True), ("placed", True)])
def test_a_kill_leaves_all_or_nothing(options: Options, defs: Path, point: str, happened: bool) -> None:
    build(options)
    old = tree(options.out)
    write(defs, "square", "5 * (x - y)**2")
    (defs / "absolute.py").unlink()
    done = run(CRASH, point, int(signal.SIGKILL), *arguments(options))
    assert done.returncode == -signal.SIGKILL, done.stderr
    if not happened:
        assert tree(options.out) == old
    with place.locked(options.out, print):
        recovered = tree(options.out)
    assert (recovered == old) != happened
    build(options)
    assert check(options) == []
    fresh = Options(defs, defs.parent / "fresh", "tiny", compile=False)
    build(fresh)
    assert tree(options.out) == tree(fresh.out)
    assert {p.name for p in (options.out / place.STATE).iterdir()} - {"lock"} == {".gitignore", "state.json"}
    if happened:
        assert recovered == tree(fresh.out)


def test_a_signal_waits_until_everything_is_in_its_place(options: Options, defs: Path) -> None:
    build(sources_only(options))
    write(defs, "square", "6 * (x - y)**2")
    done = run(CRASH, "moved", int(signal.SIGTERM), *arguments(options, "--no-compile"))
    assert done.returncode == -signal.SIGTERM
    assert not (options.out / place.STATE / "journal.json").exists()
    assert check(sources_only(options)) == []


def test_two_builds_at_once(options: Options) -> None:
    command = [sys.executable, "-c", COMMAND, *arguments(options, "--no-compile")]
    both = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert check(sources_only(options)) == []


def test_who_waits_says_so(options: Options) -> None:
    build(sources_only(options))
    with FileLock(options.out / place.STATE / "lock"):
        process = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments(options, "--no-compile")], cwd=ROOT,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert "another build" in process.stderr.readline()
        time.sleep(0.1)
        assert process.poll() is None
    assert "up to date" in process.communicate(timeout=60)[0]
    assert process.returncode == 0


# Failing

@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bad_definition_leaves_the_library_whole(options: Options, defs: Path, jobs: int) -> None:
    build(sources_only(options))
    before = times(options.out)
    write(defs, "square", "2 * (x - y)**2")
    write(defs, "third", "x * y")
    write(defs, "bad", "x + z")
    with pytest.raises(LosscompError, match="z") as error:
        build(Options(defs, options.out, "tiny", jobs=jobs, compile=False))
    assert error.value.where.endswith("bad.py:6")
    assert times(options.out) == before


def fake_compiler(folder: Path, fails_on: str) -> str:
    """A compiler that does not work for one kind of call."""
    real = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    script = folder / "fakecc"
    script.write_text(f"""#!/bin/sh
for a in "$@"; do [ "$a" = "{fails_on}" ] && {{ echo "broken on purpose" >&2; exit 1; }}; done
exec {real} "$@"
""")
    script.chmod(0o755)
    return str(script)


@needs_compiler
@pytest.mark.parametrize("fails_on", ["-c", "-E", "-shared"])
def test_a_compiler_error_leaves_the_library_whole(options: Options, defs: Path, tmp_path: Path, fails_on: str,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    build(options)
    before, binary = times(options.out), (options.out / BINARY).read_bytes()
    write(defs, "square", "7 * (x - y)**2")
    monkeypatch.setenv("CC", fake_compiler(tmp_path, fails_on))
    with pytest.raises(BuildError, match="broken on purpose"):
        build(options)
    assert times(options.out) == before
    assert (options.out / BINARY).read_bytes() == binary


@needs_compiler
def test_a_compiler_that_lacks_a_pass_compiles_without_the_list(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of passes is GCC's; another compiler takes -O3."""
    asked = tmp_path / "asked"
    script = Path(fake_compiler(tmp_path, GCC_FLAGS[-1]))
    script.write_text(script.read_text().replace("#!/bin/sh\n", f'#!/bin/sh\necho "$@" >> {asked}\n'))
    monkeypatch.setenv("CC", str(script))
    build(options)
    compiled = [line.split() for line in asked.read_text().splitlines() if "-std=c99" in line.split()]
    assert compiled and all("-O3" in line and not set(GCC_FLAGS) & set(line) for line in compiled)
    monkeypatch.delenv("CC")
    found = compiler.find()
    assert found is not None and found.taken(["-O3", "-no-such-flag"]) == () and found.taken(["-O3"]) == ("-O3",)


def test_a_first_build_that_fails_leaves_nothing(options: Options, defs: Path) -> None:
    write(defs, "bad", "x + z")
    with pytest.raises(LosscompError):
        build(sources_only(options))
    assert not options.out.exists()


def test_a_folder_that_cannot_be_written(options: Options, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BuildError, match="file"):
        build(Options(options.definitions, tmp_path / "file" / "out", "tiny"))
    with pytest.raises(BuildError, match="is a file"):
        build(Options(options.definitions, tmp_path / "file", "tiny"))


def test_a_full_disk_leaves_the_library_whole(options: Options, defs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(sources_only(options))
    before = times(options.out)
    write(defs, "square", "8 * (x - y)**2")

    def full(path: Path, data: bytes) -> int:
        if place.STATE in path.parts:
            raise OSError(28, "No space left on device", str(path))
        return len(data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(BuildError, match="No space left"):
            build(sources_only(options))
    assert times(options.out) == before
    assert not (options.out / place.STATE / "stage").exists()


def test_a_spare_part_that_does_not_compile_is_done_without(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its target works without it: a word, the rest of the library, and no second try until something changes."""
    def refuse(job: compiler.Job) -> compiler.Binary:
        raise BuildError("no such header")

    kinds = ["kind of torch"]
    spare = Part("numpy", "src/{name}/numpy/_spare.so", ("src/{name}/numpy/",), compiler.missing, lambda: kinds[0], refuse, spare=True)
    monkeypatch.setattr(build_module, "PARTS", (*PARTS, spare))
    options = replace(options, targets=("numpy",))
    said: list[str] = []
    report = build(options, Talk(notice=said.append))
    assert not report.lacking and (options.out / "src/tiny/numpy/__init__.py").exists()
    assert len(said) == 1 and "_spare.so does not compile" in said[0] and "no such header" in said[0]
    assert build(options, Talk(notice=said.append)).idle and len(said) == 1
    kinds[0] = "another"
    build(options, Talk(notice=said.append))
    assert len(said) == 2


@needs_compiler
def test_the_usual_call_is_compiled_beside_the_operators(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can be; the name says for which torch, and it goes when that is another."""
    if why := compiler.missing_torch():
        pytest.skip(f"NOT CHECKED: the torch target: {why}")
    made: list[Path] = []

    def make(job: compiler.Job) -> compiler.Binary:
        path = job.work / job.root / "torch" / f"_quick.{compiler.torch_stamp()}.so"
        assert (job.work / job.root / "torch/csrc/quick.cpp").exists()
        path.write_bytes(b"binary")
        made.append(path)
        return compiler.Binary(path, ("quick",), 0)

    monkeypatch.delenv("LOSSCOMP_QUICK")
    monkeypatch.setattr(build_module, "PARTS", tuple(replace(p, make=make) for p in PARTS if p.spare))
    options = replace(options, targets=("torch",))
    for stamp in ("torch-1", "torch-2"):
        monkeypatch.setattr(compiler, "torch_stamp", lambda stamp=stamp: stamp)
        build(options)
        assert [p.name for p in (options.out / "src/tiny/torch").glob("*.so")] == [f"_quick.{stamp}.so"]
        assert build(options).idle
    assert len(made) == 2


def test_without_a_compiler_there_are_sources_and_advice(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler.missing():
        build(options)
    monkeypatch.setenv("PATH", "/nonexistent")
    report = build(options)
    assert "Get one" in report.lacking["c"]
    write(options.definitions, "square", "9 * (x - y)**2")  # type: ignore[arg-type]
    report = build(options)
    assert (options.out / "src/tiny/csrc/square.c").exists()
    assert not (options.out / BINARY).exists(), "a binary of other sources must go"
    assert build(options).idle
    monkeypatch.setenv("CC", "no-such-cc")
    with pytest.raises(BuildError, match="no-such-cc"):
        build(options)


# --check

def kinds(options: Options) -> dict[str, str]:
    """The answer of --check."""
    return {difference.path: difference.kind for difference in check(options)}


def test_check_tells_stale_from_edited(options: Options, defs: Path) -> None:
    nothing = kinds(options)
    assert set(nothing.values()) == {"missing"} and not options.out.exists()
    build(sources_only(options))
    assert kinds(options) == {}
    kernel = options.out / "src/tiny/numpy/kernels/square.py"
    kernel.write_text(kernel.read_text() + "# mine\n")
    (options.out / "src/tiny/csrc/absolute.c").unlink()
    write(defs, "third", "x * y")
    (defs / "absolute.py").unlink()
    before = times(options.out)
    found = kinds(options)
    assert found["src/tiny/numpy/kernels/square.py"] == "edited"
    assert found["src/tiny/numpy/kernels/third.py"] == "missing"
    assert found["src/tiny/numpy/kernels/absolute.py"] == "left over"
    assert found["src/tiny/csrc/tiny.c"] == found[MANIFEST] == "stale"
    assert "src/tiny/csrc/absolute.c" not in found
    assert times(options.out) == before, "--check writes nothing"


def test_a_build_renews_what_was_edited_and_says_so(options: Options) -> None:
    build(sources_only(options))
    before = tree(options.out)
    kernel = options.out / "src/tiny/numpy/kernels/square.py"
    kernel.write_text("mine\n")
    report = build(sources_only(options))
    assert report.restored == report.written == ("src/tiny/numpy/kernels/square.py",)
    assert tree(options.out) == before


# Files of others

def test_files_of_others_stay(options: Options, defs: Path) -> None:
    build(sources_only(options))
    mine = options.out / "src" / "tiny" / "csrc" / "notes.txt"
    mine.write_text("mine")
    edited = options.out / "src" / "tiny" / "numpy" / "kernels" / "absolute.py"
    edited.write_text("mine too")
    (defs / "absolute.py").unlink()
    report = build(sources_only(options))
    assert "src/tiny/csrc/absolute.c" in report.removed and not (options.out / "src/tiny/csrc/absolute.c").exists()
    assert mine.read_text() == "mine" and edited.read_text() == "mine too"


def test_files_of_others_are_not_overwritten(options: Options) -> None:
    options.out.mkdir()
    (options.out / "README.md").write_text("my project")
    with pytest.raises(BuildError, match=r"did not write.*README\.md"):
        build(sources_only(options))
    assert tree(options.out) == {"README.md": b"my project"}


def test_another_name_takes_the_old_files_away(options: Options) -> None:
    build(sources_only(options))
    build(Options(options.definitions, options.out, "renamed", compile=False))
    assert not (options.out / "src" / "tiny").exists()
    assert check(Options(options.definitions, options.out, "renamed")) == []


# --only

def only(options: Options, *names: str) -> Report:
    """A build of some losses."""
    return build(Options(options.definitions, options.out, None, only=names, compile=False))


def test_only_renews_one_loss_and_keeps_the_others(options: Options, defs: Path) -> None:
    with pytest.raises(BuildError, match="that was built here"):
        only(options, "square")
    assert not options.out.exists()
    build(sources_only(options))
    before = tree(options.out)
    write(defs, "square", "10 * (x - y)**2")
    write(defs, "absolute", "this is no formula")
    report = only(options, "square")
    after = tree(options.out)
    assert report.losses == 2
    assert {path for path in after if after[path] != before[path]} == {
        MANIFEST, "src/tiny/numpy/kernels/square.py", "src/tiny/csrc/square.c", "src/tiny/losses/square.py",
                       "src/tiny/torch/composites/square.py", "src/tiny/torch/losses/square.py", "src/tiny/cuda/square.cu"}
    write(defs, "absolute", "2 * Abs(x - y)", "Abs, ")
    assert "src/tiny/csrc/absolute.c" in build(sources_only(options)).written, "a whole build finds what --only left"
    with pytest.raises(LosscompError, match="no loss 'sqare'") as error:
        only(options, "sqare")
    assert "square" in error.value.repair


def test_only_takes_a_new_loss_in(options: Options, defs: Path) -> None:
    build(sources_only(options))
    write(defs, "third", "x * y")
    assert only(options, "third").losses == 3
    assert check(options) == []


# Words

def test_progress_and_notices(options: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOSSCOMP_CACHE", str(tmp_path / "new cache"))
    said: list[str] = []
    listen: Callable[[str], None] = said.append
    build(sources_only(options), Talk(progress=listen))
    assert [line.split(" (")[0] for line in said] == ["derived absolute", "derived square"]
