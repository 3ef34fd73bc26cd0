"""A table of bad inputs for every command: numbers, paths, settings, presets, damaged files, URLs on loopback.

Most cases are made from the commands' own parsers and settings, so that a new option or setting gets its cases without
being named here.
"""

import argparse
import io
import itertools
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin
from unittest import mock

from crmuons import cli, config
from crmuons.config.options import Reader

SECONDS, NETWORK_SECONDS = 10, 60  # No case may take longer; a server that is down is asked again for a while.
LINES = 3  # Of an answer.
REMEDY = re.compile(
    r"expected|give|name a|choose|copy|remove|set |nearest|Input should|is not|holds? no|take|say|write|check|prepare|install"
    r"|form |use |not a |neither |nested|rename|must|required|no (file|model|preset|space|journal)|does not|cannot|explains"
)
SERVER = "http://127.0.0.1:1/x"  # Nothing listens there.
BAR = re.compile(r"^\w+: .*\[\d\d:\d\d")
BAD_NUMBERS = (
    "nan", "-inf", "inf", "1e400", "-1", "x", "", "9" * 5000, str(2**64), "0x10", "1;2", "1 2", "١٢", "１", "1__0", "1,5", "0b1", "Infinity",
    "True", "1\x1b[2J", "1\n2", "0" * 5000 + "x", "--", "½", "1e", "\udce4",
)  # fmt: skip
BAD_WORDS = (
    "",
    " ",
    "x\n1",
    "x\0",
    "\x1b]0;x\x07",
    "x" * 5000,
    "\udce4",
    "../" * 400,
    "{1..9999999999}",
    "x::y://z",
    "file://",
)
EACH_KEY = 2  # One in this many is changed.
# Values in place of each value of a JSON file.
JUNK: tuple[object, ...] = (
    None,
    [],
    {},
    "",
    "\x1b[2J",
    -1,
    1e308,
    float("nan"),
    2**80,
    True,
    [[]] * 3,
    {"x": 1},
    "../../x",
    10**9,
    [1e9] * 4,
)
IMPATIENT = {
    "CRMUONS_HTTP_START_S": "1",
    "CRMUONS_PELICAN_START_S": "1",
}  # Nothing answers, and the time for it is not what is tried.
BAD_VARIABLES = {
    "CRMUONS_HTTP_START_S": ("", "x", "nan", "-1", "1e300", "١"), "CRMUONS_HTTP_READ_S": ("0", "inf"),
    "CRMUONS_PELICAN_START_S": ("", "x", "nan", "1e300"), "CRMUONS_PELICAN_TRUSTED": ("\x1b[2J", "://", "[", "," * 5000),
    "BEARER_TOKEN": ("", "a b", "\x1b[2J", "x" * 100_000, "e30.e30.", "..", "e30.W10.x", "\udce4"), "BEARER_TOKEN_FILE": ("", "/nowhere", "/dev/null", "/tmp", "x" * 5000),
    "SSL_CERT_FILE": ("/nowhere", "/dev/null", "/tmp", "x" * 5000, "/etc/hostname"),
    "MLFLOW_TRACKING_URI": ( "http://", "http://[::1", "http://127.0.0.1:99999", "://", "\x1b[2J", "x" * 5000, "file:///nowhere/at/all/x", "databricks", "htp://x:5000",),
    "RAY_ADDRESS": ("x", "127.0.0.1:1", ":::", "http://127.0.0.1:1", "\x1b[2J:1", "127.0.0.1:99999999999", "ray://127.0.0.1:1", "127.0.0.1:١"),
    "RAY_TMPDIR": ("/nowhere", "/dev/null", "/tmp/" + "x" * 200), "https_proxy": ("x", "http://127.0.0.1:1", "://", "http://[", "\x1b"),
}  # fmt: skip
BAD_VALUES = ("nan", "inf", "-1e400", str(2**70), "[[]]", "{a=1}", "2026-01-01")


@dataclass(frozen=True)
class World:
    """What the cases find: toy data, a preset, a trained run, its model, prepared and generated data."""

    root: Path

    def __getattr__(self, name: str) -> str:
        return str(self.root / name)


@dataclass(frozen=True)
class Case:
    """A bad input.

    Attributes:
        kind: numbers, paths, settings, presets or files.
        words: of the command, from the world.
        names: one of these must be in the answer: the thing that is wrong.
        damage: changes the world's copy in the way; the copy is then the world of `words`.
        may_pass: the command may succeed, since the file can be made again or is not needed, if it says nothing wrong.
        variables: of the environment.
    """

    kind: str
    words: tuple[str, ...]
    names: tuple[str, ...] = ()
    damage: Callable[[Path], None] | None = None
    may_pass: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join(word if len(word) < 60 else f"...{word[-30:]}" for word in self.words)[:300]


@dataclass(frozen=True)
class Answer:
    code: int
    text: str
    printed: str
    seconds: float

    def fault(self, case: Case) -> str:
        """Return what is wrong with the answer; empty if nothing is."""
        if self.code < 0:
            return f"no answer within {self.seconds:.0f} s"
        if self.code == 70 or "Traceback" in self.text or "did not foresee" in self.text:
            return f"not foreseen: {self.text[:300]}"
        if self.code == 0:
            return "" if case.may_pass else "accepted"
        lines = [line for line in self.text.splitlines() if line.strip() and not BAR.search(line)]
        if not lines:  # `inspect` says on standard output what it found.
            said = self.printed.splitlines()
            of_it = [
                line
                for line in said
                if (any(name in line for name in case.names) if case.names else REMEDY.search(line))
            ]
            lines = of_it[:LINES] or said[-LINES:]
        text = "\n".join(lines)
        if not 1 <= len(lines) <= LINES or len(text) > 1500:
            return f"{len(lines)} lines with {len(text)} letters: {text[:300]}"
        if case.names and not any(name in text for name in case.names):
            return f"does not name {' or '.join(case.names)}: {text[:300]}"
        return "" if REMEDY.search(text) else f"has no remedy: {text[:300]}"


class _TooLongError(BaseException):
    """Not an Exception: nothing catches it on the way."""


def answer(words: tuple[str, ...]) -> Answer:
    """Run a command in this process."""
    said, printed, begin = io.StringIO(), io.StringIO(), time.monotonic()
    with redirect_stderr(said), redirect_stdout(printed):
        try:
            # An evaluation whose words are right takes seconds.
            waits = words[0] == "evaluate" or any("127.0.0.1:1" in word for word in words)
            with _limit(NETWORK_SECONDS if waits else SECONDS):
                code = cli.main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        except _TooLongError:
            code = -1
    return Answer(code, said.getvalue(), printed.getvalue(), time.monotonic() - begin)


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def base_words(world: World) -> dict[str, list[str]]:
    """Return a command line of each command that has nothing wrong in it."""
    out = ["--out", world.out]
    return {
        "simulate": ["--events", "10", *out],
        "convert corsika": [world.data, *out],
        "convert hdf5": [world.data, *out],
        "convert parquet": [world.data, *out],
        "convert events": [world.data, "--to", "f2k", "--fill", "dir_x=0", "dir_y=0", "t_ns=0", *out],
        "inspect": [world.data],
        "prepare": [world.data, *out],
        "evaluate": ["--truth", world.data, "--split", "all", "--model", f"{world.run}/model", *out],
        "generate": ["--model", f"{world.run}/model", "--spectrum", "events=10", *out],
        "export": [f"{world.run}/model", *out],
        "validate": [world.data, "--energy-range", "1e4", "1e8", "--gamma", "1.4", "--events", "10", *out],
        "sync": [world.run],
        "login": ["pelican://127.0.0.1:1/x"],
        "benchmark": ["step", *out],
        "sweep": [f"{world.root}/preset.toml", f"data.train={world.data}"],
    }


def _arguments(words: list[str]) -> Iterator[tuple[str, argparse.Action]]:
    def below(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.Action]]:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for word, inner in action.choices.items():
                    yield from below(inner, f"{name} {word}".strip())
            else:
                yield name, action

    yield from below(cli._parser(words), "")


def numbers(world: World) -> Iterator[Case]:
    """Yield bad words for every option with a number, of every command."""
    base = base_words(world)
    for command, action in _arguments(sorted(cli.NAMES)):
        if not (action.option_strings and isinstance(action.type, Reader) and _is_number(action.type.kind)):
            continue
        option = action.option_strings[-1]
        others = ("1",) * (action.nargs - 1) if isinstance(action.nargs, int) else ()
        for word in BAD_NUMBERS:
            given = (f"{option}={word}",) if not others and action.nargs is None else (option, word, *others)
            yield Case("numbers", (*command.split(), *base[command], *given), (option,))


def _is_number(kind: object) -> bool:
    base = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    return base in (int, float)


def bad_places(world: World) -> list[str]:
    """Return names that hold nothing that can be read."""
    return [
        "", "  ", "a\nb", "a\x07b", "x" * 5000, "/".join(["x"] * 3000), world.nowhere, f"{world.root}/{{1..9999999999}}",
        "/dev/null", world.fifo, world.text, world.empty, f"{world.root}/*.nothing", f"{world.text}/below",
        "http://", "http://[::1", "http://127.0.0.1:99999/x", "ftp//x", "://", "nosuch://x/y",
        "file:///nowhere/at/all", f"{world.root}/[", "~nobodyatall/x", "\udce4.parquet", "-",
    ]  # fmt: skip


def paths(world: World) -> Iterator[Case]:
    """Yield bad names in place of everything that a command reads."""
    yield Case("paths", ("inspect", SERVER), (SERVER,))
    for place in bad_places(world):
        out = ("--out", world.out)
        for words in (
            ("convert", "corsika", place, *out), ("convert", "hdf5", place, *out), ("convert", "parquet", place, *out),
            ("inspect", place), ("prepare", place, *out), ("export", place, *out), ("sync", place),
            ("evaluate", "--truth", place, "--model", f"{world.run}/model", *out),
            ("evaluate", "--truth", world.data, "--split", "all", "--generated", place, *out),
            ("evaluate", "--truth", world.data, "--split", "all", "--model", place, *out),
            ("generate", "--model", place, "--spectrum", "events=10", *out),
            ("generate", "--model", f"{world.run}/model", "--primaries", place, *out),
            ("train", f"{world.root}/preset.toml", f"data.train={place}", f"run.storage_path={world.out}"),
            ("train", place, f"data.train={world.data}", f"run.storage_path={world.out}"),
            ("sweep", f"{world.root}/preset.toml", "--space", place),
        ):  # fmt: skip
            if place == "-" and words[0] != "train":
                continue  # argparse takes it as a word of its own.
            yield Case("paths", words)
    for place in ("", "memory://x", "a\nb", f"{world.text}/below", "x" * 5000, "\udce4"):
        for command, words in base_words(world).items():
            if "--out" in words:
                given = [place if word == world.out else word for word in words]
                yield Case("paths", (*command.split(), *given))


def settings(world: World) -> Iterator[Case]:
    """Yield bad values for every setting."""
    for path, value in itertools.product(config.settings(), BAD_VALUES):
        words = ("train", f"{world.root}/preset.toml", f"data.train={world.data}", f"run.storage_path={world.out}")
        is_list = path in ("data.train", "data.validation", "train.profile_steps", "scaling.num_workers")
        is_text = not is_list and isinstance(_default(path), str)
        if not (is_text and value in BAD_VALUES[:4]):  # A bare word is a text, and so a name of something.
            yield Case("settings", (*words, f"{path}={value}"), (path, path.rpartition(".")[2]))
    for word in (
        "train",
        "train.",
        ".",
        "=",
        "train=1",
        "train.steps",
        "a=b",
        "train.steps.x=1",
        "=1",
        "x" * 5000 + "=1",
    ):
        yield Case("settings", ("train", f"{world.root}/preset.toml", word))


def _default(path: str) -> object:
    tree = config.from_dict({"train": {"steps": 1}}).flat()
    return tree.get(path, "")


PRESETS = (
    b"\xff\xfe", b"[train", b"[train]\nsteps = ", b"[train]\nsteps = 1\nsteps = 2", b"steps = 1", b"[train]\nstep = 1",
    b"train = 1", b"train = []", b"[[train]]\nsteps = 1", b"[train]\nsteps = nan", b"[train]\nsteps = 1.5", b"[train]\nsteps = true",
    b"[train]\nsteps = '1e'", b"[train]\nmax_seconds = inf", b"[run]\nname = 'a/b'\n[train]\nsteps = 1", b"a = " + b"[" * 5000,
    b"[train]\nsteps = " + b"9" * 5000, b"[train]\nsteps = 1\n[data]\ntrain = ''", b"[train]\nsteps = 1\n[data]\ntrain = [1]",
    b"[train]\nsteps = 1\n[model]\nwidth = 1_000_000", b"[train]\nsteps = 1\n[model]\nkind = 'x'", b"\x00" * 100,
    b"[train]\nsteps = 1\n[tracking]\nexperiment = ''", b"[train]\nsteps = 1\n[tracking]\nexperiment = ' '",
    b"[train]\nsteps = 1\n[scaling]\nthreads_per_worker = 100000", b"[train.optimizer]\nlr = nan\n", b"[train.optimizer]\nbetas = [2, 2]",
    b"[train]\nsteps = 1\n[run]\nseed = 18446744073709551616", b"{" * 3000, b"[" + b"a." * 3000 + b"b]\nc = 1",
)  # fmt: skip


def presets(world: World) -> Iterator[Case]:
    """Yield presets, and spaces of sweeps, that are wrong."""
    for number, content in enumerate(PRESETS):
        path = world.root / f"preset-{number}.toml"
        path.write_bytes(content)
        yield Case("presets", ("train", str(path), f"run.storage_path={world.out}"))
        yield Case("presets", ("sweep", f"{world.root}/preset.toml", "--space", str(path)))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "garbage": lambda content: os.urandom(len(content) or 10),
    "half": lambda content: content[: len(content) // 2],
    "null": lambda content: b"null",
    "list": lambda content: b"[1]",
    "object": lambda content: b"{}",
    "text": lambda content: b'"x"',
    "deep": lambda content: b"[" * 100_000,
    "nan": lambda content: b'{"format": NaN, "step": NaN}\n',
}


def _readers(world: World) -> dict[str, list[tuple[str, ...]]]:
    """Return the commands that read each file of runs, models, prepared and generated data."""
    resume = (
        "train",
        f"{world.root}/preset.toml",
        f"data.train={world.data}",
        f"run.storage_path={world.root}",
        "train.steps=4",
    )
    resume = (*resume, "run.name=run", "run.resume=auto")
    generate = ("--spectrum", "events=10", "--out", f"{world.root}/generated")
    return {
        "run/model/model.json": [("generate", "--model", f"{world.root}/run/model", *generate[:2], "--out", world.out), ("export", f"{world.root}/run/model", "--out", world.out)],
        "run/model/weights.pt": [("generate", "--model", f"{world.root}/run/model", *generate[:2], "--out", world.out), ("export", f"{world.root}/run/model", "--out", world.out)],
        "run/config.json": [resume],
        "run/files.json": [resume],
        "run/metrics.jsonl": [resume],
        "run/features.pt": [resume],
        "run/validation.parquet": [resume],
        "run/checkpoints/best": [resume],
        "run/moved.json": [resume],
        "run/checkpoints/step-00000002/training.pt": [resume],
        "run/checkpoints/step-00000002/weights.pt": [resume],
        "run/checkpoints/step-00000002/model.json": [resume],
        "run/mlflow/sent.json": [("sync", f"{world.root}/run", "--to", "http://127.0.0.1:1")],
        "run/mlflow/journal.jsonl": [("sync", f"{world.root}/run", "--to", "http://127.0.0.1:1")],
        "generated/request.json": [("generate", "--model", f"{world.root}/run/model", *generate)],
        "prepared/manifest.json": [("inspect", f"{world.root}/prepared"), (*resume[:2], f"data.train={world.root}/prepared", f"run.storage_path={world.out}")],
        "prepared/claim.json": [("prepare", world.data, "--out", f"{world.root}/prepared")],
        "data/0.parquet": [("inspect", world.data), ("prepare", world.data, "--out", world.out)],
    }  # fmt: skip


def files(world: World) -> Iterator[Case]:
    """Yield damaged files of runs, models, prepared and generated data, each with the commands that read them."""
    # Files that can be made again or that a finished result does not need; the answer may be a success that says so.
    spare = {"run/metrics.jsonl", "run/features.pt", "run/checkpoints/best", "run/moved.json", "prepared/claim.json"}
    for name, commands in _readers(world).items():
        if not (world.root / name).exists() and not name.endswith("moved.json"):
            continue
        for (what, change), words in itertools.product(DAMAGE.items(), commands):
            if name.endswith(("journal.jsonl", "sent.json")) and what == "nan":
                continue

            def damage(root: Path, name: str = name, change: Callable[[bytes], bytes] = change) -> None:
                path = root / name
                path.write_bytes(change(path.read_bytes() if path.exists() else b"{}"))

            passes = name in spare or "checkpoints" in name
            yield Case(f"files ({what})", words, (Path(name).name, Path(name).parent.name), damage, may_pass=passes)


def words(world: World) -> Iterator[Case]:
    """Yield bad words for every option that takes a word or a path, of every command."""
    base = base_words(world)
    for command, action in _arguments(sorted(cli.NAMES)):
        takes_text = action.nargs != 0 and not (isinstance(action.type, Reader) and _is_number(action.type.kind))
        if (
            not action.option_strings
            or not takes_text
            or not isinstance(action.type, Reader | None)
            or action.dest == "help"
        ):
            continue
        option = action.option_strings[-1]
        for word in BAD_WORDS:
            others = (word,) * (action.nargs - 1) if isinstance(action.nargs, int) else ()
            given = (option, word, *others) if action.nargs is not None else (f"{option}={word}",)
            # What a suite of the benchmark has no use for is not looked at, and the suite runs.
            if command == "benchmark" and option != "--out":
                continue
            yield Case("words", (*command.split(), *base[command], *given), may_pass=True)


def keys(world: World) -> Iterator[Case]:
    """Yield JSON files of runs, models and data in which one value is another."""
    for name, commands in _readers(world).items():
        if not name.endswith((".json", ".jsonl")) or not (world.root / name).exists():
            continue
        tree = _first_json(world.root / name)
        for number, path in enumerate(itertools.islice(_paths(tree), 0, None, EACH_KEY)):
            for given in commands:
                junk = JUNK[number % len(JUNK)]  # In turn: all of them at each key would be 10,000 cases.

                def damage(root: Path, name: str = name, path: tuple[Any, ...] = path, junk: object = junk) -> None:
                    changed = _first_json(root / name)
                    inside = changed
                    for step in path[:-1]:
                        inside = inside[step]
                    inside[path[-1]] = junk
                    (root / name).write_text(json.dumps(changed) + "\n")

                what = f"keys ({name}: {'.'.join(map(str, path))} = {str(junk)[:20]!r})"
                yield Case(what, given, (), damage, may_pass=True)


def _first_json(path: Path) -> Any:
    content = path.read_bytes()
    return json.loads(content.splitlines()[0] if path.suffix == ".jsonl" else content)


def _paths(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value of a JSON tree; of a long list, to the first."""
    below = tree.items() if isinstance(tree, dict) else enumerate(tree[:1]) if isinstance(tree, list) else ()
    for key, value in below:
        yield (*above, key)
        yield from _paths(value, (*above, key))


def variables(world: World) -> Iterator[Case]:
    """Yield junk in variables of the environment, each with a command that reads it."""
    training = ("train", f"{world.root}/preset.toml", f"data.train={world.data}", f"run.storage_path={world.out}")
    readers = {
        "CRMUONS_HTTP": ("inspect", SERVER), "https_proxy": ("inspect", "https://127.0.0.1:1/x"), "MLFLOW": (*training, "tracking.enabled=true"),
        "RAY": (*training, "scaling.num_workers=1"),
    }  # fmt: skip
    pelican = ("inspect", "pelican://127.0.0.1:1/x/y.parquet")
    for variable, values in BAD_VARIABLES.items():
        given = next((command for begin, command in readers.items() if variable.startswith(begin)), pelican)
        for value in values:
            yield Case(
                f"variables ({variable}={value[:20]!r})", given, may_pass=True, variables={**IMPATIENT, variable: value}
            )


def ask(case: Case, world: World, copy: Path) -> Answer:
    """Return the answer to a case; damaged files are those of a copy of the world."""
    if case.damage is None:
        shutil.rmtree(world.out, ignore_errors=True)
        with mock.patch.dict(os.environ, case.variables):
            return answer(case.words)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(world.root, copy, ignore=lambda _, names: {name for name in names if name == "fifo"})
    case.damage(copy)
    return answer(tuple(word.replace(str(world.root), str(copy)) for word in case.words))
