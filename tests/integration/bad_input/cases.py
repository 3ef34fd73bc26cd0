"""A table of bad inputs for every command: numbers, words, paths, settings, presets, damaged files, URLs on loopback.

Most cases are made from the commands' own parsers and settings, so that a new option or setting gets its cases without
being named here.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, get_args, get_origin

from crmuons import cli, config
from crmuons.config.options import Reader
from tests.integration.bad_input import damaged_parquet
from tests.integration.bad_input.answers import Case, World
from tests.integration.bad_input.damaged import files, keys

SERVER = "http://127.0.0.1:1/x"  # Nothing listens there.
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
IMPATIENT = {
    "CRMUONS_HTTP_START_S": "1",
    "CRMUONS_PELICAN_START_S": "1",
}  # Nothing answers, and the time for it is not what is tried.
BAD_VARIABLES = {
    "CRMUONS_HTTP_START_S": ("", "x", "nan", "-1", "1e300", "١"), "CRMUONS_HTTP_READ_S": ("0", "inf"),
    "CRMUONS_PELICAN_START_S": ("", "x", "nan", "1e300"), "CRMUONS_PELICAN_TRUSTED": ("\x1b[2J", "://", "[", "," * 5000),
    "BEARER_TOKEN": ("", "a b", "\x1b[2J", "x" * 100_000, "e30.e30.", "..", "e30.W10.x", "\udce4"), "BEARER_TOKEN_FILE": ("", "/nowhere", "/dev/null", "/tmp", "x" * 5000),
    "SSL_CERT_FILE": ("/nowhere", "/dev/null", "/tmp", "x" * 5000, "/etc/hostname"),
    "MLFLOW_TRACKING_URI": ( "http://", "http://[::1", "http://127.0.0.1:99999", "://", "\x1b[2J", "x" * 5000, "file:///nowhere/at/all/x", "databricks", "nosuch://127.0.0.1/x",
        "sqlite:////nowhere/x.db", "sqlite:////dev/null", "sqlite:////etc/hostname", "sqlite://", "sqlite:///" + "x" * 5000, "postgresql://me:hunter2@127.0.0.1:1/x",
        "postgresql+psycopg://127.0.0.1:1/x?host=/nowhere", "postgresql://[", "mysql://127.0.0.1:1/x", "mysql+nosuch://127.0.0.1:1/x", SERVER),
    "RAY_ADDRESS": ("x", "127.0.0.1:1", ":::", "http://127.0.0.1:1", "\x1b[2J:1", "127.0.0.1:99999999999", "ray://127.0.0.1:1", "127.0.0.1:١"),
    "RAY_TMPDIR": ("/nowhere", "/dev/null", "/tmp/" + "x" * 200), "https_proxy": ("x", "http://127.0.0.1:1", "://", "http://[", "\x1b"),
}  # fmt: skip
BAD_TOML = (
    "[]", "[[1]]", "{}", "{a=1}", "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", "true", '""', '"x"', "inf", "nan", "-1", "1e400", "0x100000000",
    "9223372036854775808", '[1,"a"]', r'"\u0000"', r'"\u001b[2J"', '"１２"', r'"1\n"', "1.5",
)  # fmt: skip
BAD_VALUES = ("nan", "inf", "-1e400", str(2**70), "[[]]", "{a=1}", "2026-01-01")


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
        "ensemble": [f"{world.run}/model", f"{world.run}/model", *out],
        "train": [f"{world.root}/preset.toml", f"data.train={world.data}"],
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
    (loop := world.root / "loop").unlink(missing_ok=True)
    loop.symlink_to(loop)
    for place in (
        "",
        "memory://x",
        "a\nb",
        f"{world.text}/below",
        "x" * 5000,
        "\udce4",
        world.loop,
        f"{world.loop}/x",
        world.fifo,
        "/dev/null",
    ):
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


def parquet(world: World) -> Iterator[Case]:
    """Yield files of events that are wrong in one way, each with commands that read them."""
    out = ("--out", world.out)
    for number, (what, content) in enumerate(damaged_parquet.variants(Path(world.data, "0.parquet").read_bytes())):
        folder = world.root / "wrong" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "events.parquet").write_bytes(content)
        place = str(folder)
        model = ("--model", f"{world.run}/model")
        for given in (("inspect", place), ("prepare", place, *out), ("generate", *model, "--primaries", place, *out)):
            yield Case(f"parquet ({what})", given, may_pass=True)


def toml(world: World) -> Iterator[Case]:
    """Yield presets in which one setting has a value of another type, or one that no setting has."""
    for number, path in enumerate(config.settings()):
        section, _, key = path.rpartition(".")
        for turn, value in enumerate(BAD_TOML):
            if turn % 3 != number % 3 or (path, value) == (
                "scaling.num_workers",
                r'"1\n"',
            ):  # A 1, for which Ray starts.  # In turn: all of them at each key would be 1,900 cases.
                continue
            preset = world.root / "presets" / f"{path}-{turn}.toml"
            preset.parent.mkdir(exist_ok=True)
            lines = {"train": ["steps = 1"], "scaling": ["num_workers = 0"], "tracking": ["enabled = false"]}
            kept = [line for line in lines.get(section, []) if not line.startswith(f"{key} ")]
            lines[section] = [*kept, f"{key} = {value}"]
            text = "".join(f"[{name}]\n" + "".join(f"{line}\n" for line in inside) for name, inside in lines.items())
            preset.write_text(text, encoding="utf-8")
            words = [
                word for word in (f"data.train={world.empty}", f"run.storage_path={world.out}") if path not in word
            ]
            yield Case(f"toml ({path} = {value})", ("train", str(preset), *words), may_pass=True)


def escapes(world: World) -> Iterator[Case]:
    """Yield names of files, folders and columns that a terminal would obey, each with every command that reads them."""
    sound = Path(world.data, "0.parquet").read_bytes()
    for number, name in enumerate(("\x1b[2Jx", "\x1b]0;x\x07", "x\u202ey", "\x9b2J", "x\rcrmuons: done", "\udce4")):
        for kind in ("sound", "damaged", "empty"):
            folder = world.root / f"names-{number}-{kind}" / name
            folder.mkdir(parents=True, exist_ok=True)
            content = {"sound": sound, "damaged": sound[:-100], "empty": b""}[kind]
            (folder / f"{name}.parquet").write_bytes(content)
            place, out = str(folder.parent), ("--out", world.out)
            for words in (
                ("inspect", place), ("prepare", place, *out), ("convert", "parquet", place, *out), ("convert", "corsika", place, *out),
                ("convert", "hdf5", place, *out), ("convert", "events", place, "--to", "f2k", *out), ("export", place, *out), ("sync", place),
                ("evaluate", "--truth", world.data, "--split", "all", "--generated", place, *out),
                ("evaluate", "--truth", place, "--split", "all", "--generated", world.data, *out),
                ("generate", "--model", f"{world.run}/model", "--primaries", place, *out), ("generate", "--model", place, "--spectrum", "events=10", *out),
                ("validate", place, "--energy-range", "1e4", "1e8", "--gamma", "1.4", "--events", "10", *out),
                ("train", f"{world.root}/preset.toml", f"data.train={place}", f"run.storage_path={world.out}"),
            ):  # fmt: skip
                yield Case(f"escapes ({name!r})", words, may_pass=True)


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


TABLES: dict[str, Callable[[World], Iterator[Case]]] = {
    "numbers": numbers, "words": words, "settings": settings, "presets": presets, "paths": paths, "files": files, "keys": keys,
    "variables": variables, "escapes": escapes, "parquet": parquet, "toml": toml,
}  # fmt: skip
