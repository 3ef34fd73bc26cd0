"""The command `crmuons`: each subcommand parses, calls one library function, and says where the results are."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from crmuons.evaluation.pieces import Pieces
    from crmuons.evaluation.protocol import Evaluation
    from crmuons.primaries import Source

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
INTERRUPTED = 130  # What a shell makes of a command that Ctrl-C ended: what should follow it does not.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; what a user can mend is said in one sentence, with exit code 1."""
    parser = argparse.ArgumentParser(
        prog="crmuons", description="Train and use a generator of atmospheric muon bundles."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    arguments = _parse(parser, argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    for ours in ("crmuons", "tune"):  # Of libraries, warnings alone: torch tells of its caches when it ends, say.
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        return int(arguments.run(arguments) or 0)
    except (ValueError, OSError, ImportError) as error:
        print(f"crmuons {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"crmuons {arguments.command}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Settings may also stand after the options, where argparse by itself takes them for something unknown."""
    arguments, left = parser.parse_known_args(argv)
    if "words" in arguments:
        arguments.words += [word for word in left if not word.startswith("-")]
        left = [word for word in left if word.startswith("-")]
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return arguments


def _add_simulate(commands: Commands) -> None:
    from crmuons.simulation.simulate import Settings

    default = Settings()
    parser = commands.add_parser(
        "simulate",
        help="draw muon bundles in ice with the built-in simulator",
        description="Draw muon bundles in South Pole ice from published parametrisations (docs/simulator.md).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--events", type=int, required=True, help="rows to write: a shower counts once per depth")
    add("--out", required=True, help="new directory for the Parquet files, or a URL (then in this process alone)")
    add("--seed", type=int, default=0, help="same seed and settings, same events")
    add("--energy-range", type=float, nargs=2, metavar="GEV", default=default.energy_gev, help="of the primaries")
    add("--gamma", type=float, default=default.gamma, help="primaries follow E^-GAMMA")
    add("--masses", type=float, nargs="+", metavar="GEV", default=default.masses_gev, help="of the primaries")
    add("--max-zenith-deg", type=float, default=default.max_zenith_deg, help="cos zenith is uniform from here to 1")
    add("--depth-range", type=float, nargs=2, metavar="M", default=default.depth_range_m, help="of vertical depths")
    add("--depths-per-shower", type=int, default=default.depths_per_shower, help="depths drawn in the range")
    add("--depths", type=float, nargs="+", metavar="M", default=(), help="vertical depths, instead of drawn ones")
    add("--threshold-gev", type=float, default=default.threshold_gev, help="muons below are lost")
    parser.set_defaults(run=_simulate)


def _simulate(arguments: argparse.Namespace) -> None:
    from crmuons.output import folder_at
    from crmuons.simulation.simulate import FILES_IN_PROCESS, Settings, num_files, simulate

    settings = Settings(
        energy_gev=tuple(arguments.energy_range),
        gamma=arguments.gamma,
        masses_gev=tuple(arguments.masses),
        max_zenith_deg=arguments.max_zenith_deg,
        depth_range_m=tuple(arguments.depth_range),
        depths_per_shower=arguments.depths_per_shower,
        depths_m=tuple(arguments.depths),
        threshold_gev=arguments.threshold_gev,
    )
    # Tasks on other nodes would write to directories of their own, from which nothing is copied to a URL.
    if num_files(arguments.events, settings) > FILES_IN_PROCESS and "://" not in arguments.out:
        from crmuons.ray_simulate import simulate
    with folder_at(arguments.out, new=True) as out:
        simulate(settings, num_events=arguments.events, out=out, seed=arguments.seed)
    print(f"{arguments.events} events in {arguments.out}")


def _add_sync(commands: Commands) -> None:
    parser = commands.add_parser(
        "sync",
        help="send to MLflow what a run could not send",
        description="Send what is left in a run's journal to the server the run was meant for, or to MLFLOW_TRACKING_URI. "
        "What the server has is not sent again.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="directory of the run")
    parser.set_defaults(run=_sync)


def _sync(arguments: argparse.Namespace) -> None:
    from crmuons.tracking.sender import sync

    num_sent, run_id = sync(arguments.run_dir)
    print(f"{num_sent} entries of {arguments.run_dir} sent to MLflow run {run_id}")


def _add_convert(commands: Commands) -> None:
    parser = commands.add_parser("convert", help="turn other programs' files into events")
    formats = parser.add_subparsers(dest="format", required=True, metavar="FORMAT")
    corsika = formats.add_parser(
        "corsika",
        help="CORSIKA 7 particle files",
        description="Follow the muons of CORSIKA 7 particle files (DAT...) into the ice. "
        "A file that cannot be read to its end is left out as a whole and named; the exit code is then 1.",
    )
    add = corsika.add_argument
    add("files", nargs="+", help="files, globs, or directories of nothing but CORSIKA files")
    add("--out", required=True, help="new directory or URL for the Parquet files")
    add("--depths", type=float, nargs="+", metavar="M", help="slant depths in metres (default: 1500 2000 2500)")
    add("--vertical", action="store_true", help="the depths are vertical: convert them with each shower's zenith")
    add("--threshold-gev", type=float, help="muons below are lost (default: 10)")
    add("--seed", type=int, default=0, help="of the energy losses")
    corsika.set_defaults(run=_convert_corsika)


def _convert_corsika(arguments: argparse.Namespace) -> int:
    from crmuons.output import folder_at
    from crmuons.simulation.corsika import DEPTHS_M, THRESHOLD_GEV, convert

    with folder_at(arguments.out, new=True) as out:
        left_out = convert(
            arguments.files,
            out,
            depths_m=arguments.depths or DEPTHS_M,
            vertical=arguments.vertical,
            threshold_gev=THRESHOLD_GEV if arguments.threshold_gev is None else arguments.threshold_gev,
            seed=arguments.seed,
        )
    print(f"events in {arguments.out}")
    if left_out:
        print("\n".join([f"{len(left_out)} files left out:", *left_out.values()]), file=sys.stderr)
    return 1 if left_out else 0


def _add_inspect(commands: Commands) -> None:
    parser = commands.add_parser("inspect", help="show what a data set holds; nothing is trained")
    add = parser.add_argument
    add("data", nargs="+", help="files, directories, globs or URLs of event Parquet")
    add("--rows", type=int, default=1_000_000, help="look at about so many rows; 0 for all (default: 1000000)")
    add("--preview", type=int, default=3, help="events with muons to show (default: 3)")
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from crmuons.inspection import inspect

    found = inspect(arguments.data, max_rows=arguments.rows or None)
    for line in found.lines(arguments.preview):
        print(line)
    return 1 if found.faults else 0


def _add_prepare(commands: Commands) -> None:
    from crmuons.shuffling import Settings

    default = Settings()
    parser = commands.add_parser(
        "prepare",
        help="make shuffled, checked shards of a data set, which training reads much faster",
        description="Check and shuffle a whole data set once, and write shards that training maps into memory "
        "(docs/data-contract.md says when it pays). The same command goes on where it was interrupted.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("data", nargs="+", help="files, directories, globs or URLs of event Parquet")
    add("--out", type=_folder, required=True, help="new directory, which all nodes share where there are several")
    add("--validation-share", type=float, default=default.validation_share, help="of the showers")
    add("--test-share", type=float, default=default.test_share, help="of the showers")
    add(
        "--vertical",
        action="store_true",
        help="the files' depth_m is the vertical depth; the shards hold the slant one",
    )
    add("--seed", type=int, default=default.seed, help="of the shuffle")
    add("--max-quarantined-share", type=float, default=0.01, help="end where more of all rows cannot be used")
    parser.set_defaults(run=_prepare)


def _folder(text: str) -> Path:
    if "://" in text:
        msg = f"'{text}' is a URL; shards are written to a directory, from which they can be copied"
        raise argparse.ArgumentTypeError(msg)
    return Path(text)


def _prepare(arguments: argparse.Namespace) -> int:
    from crmuons import prepare
    from crmuons.shuffling import QUARANTINE, Settings

    settings = Settings(arguments.validation_share, arguments.test_share, arguments.vertical, arguments.seed)
    out = arguments.out.absolute()
    begun = prepare.begin(out, arguments.data, settings)
    each: prepare.Each = prepare.here
    cluster: AbstractContextManager[None] = nullcontext()
    if begun.is_large:
        from crmuons import ray_cluster, ray_prepare

        each, cluster = ray_prepare.each, ray_cluster.cluster()
    try:
        with cluster:
            manifest = prepare.prepare(begun, each, arguments.max_quarantined_share)
    except KeyboardInterrupt:
        print("crmuons prepare: interrupted; the same command goes on from what is done", file=sys.stderr)
        return INTERRUPTED
    print(f"{manifest.describe()} in {arguments.out}")
    if manifest.quarantined:
        print(f"{manifest.quarantined} rows that cannot be used: {arguments.out / QUARANTINE}")
    return 0


def _add_train(commands: Commands) -> None:
    parser = commands.add_parser(
        "train",
        help="train a generator on Ray Train workers",
        description="Train a generator. Settings: a TOML preset, then words of the form section.key=value.",
        epilog="`crmuons settings` lists every setting.",
    )
    parser.add_argument("preset", type=Path, help="TOML file; those that come along are in jobs/configs")
    parser.add_argument("words", nargs="*", metavar="section.key=value", help="settings that override the preset's")
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from crmuons import config

    settings = config.load(arguments.preset, arguments.words)  # Before Ray, whose import takes seconds.
    from crmuons.ray_train import RunFailedError, run_training

    try:
        result = run_training(settings)
    except RunFailedError as error:
        print(f"crmuons train: {error}", file=sys.stderr)
        return 1
    print(result.describe())
    return 0 if result.outcome == "finished" else INTERRUPTED


def _add_sweep(commands: Commands) -> None:
    parser = commands.add_parser(
        "sweep",
        help="train many runs over a space of settings, and find the best",
        description="Train trials over a space of settings on Ray Tune; the score is the validation's, as in `crmuons train`. "
        "The same command with run.resume=auto continues a sweep that was stopped or killed (docs/sweeps.md).",
        epilog="`crmuons settings` lists every setting.",
    )
    add = parser.add_argument
    add(
        "preset",
        type=Path,
        help="TOML file with the settings of every trial; those that come along are in jobs/configs",
    )
    add("words", nargs="*", metavar="section.key=value", help="settings that override the preset's")
    add("--space", type=Path, metavar="TOML", help="what varies (default: learning rates, momentum or betas, critic steps, "
        "penalty, batch size)")  # fmt: skip
    add("--search", choices=("random", "tpe", "grid"), default="tpe", help="how trials are chosen (default: tpe)")
    add("--scheduler", choices=("none", "asha", "pbt"), default="asha",
        help="which trials go on: all, the better ones, or a population that copies its best (default: asha)")  # fmt: skip
    add("--samples", type=int, metavar="N", help="trials (default: 20, or the whole grid)")
    add("--concurrency", type=int, metavar="N", help="trials at once (default: as many as there is room for)")
    add("--cpus-per-trial", type=float, metavar="CPUS", help="(default: an equal share)")
    add(
        "--gpus-per-trial",
        type=float,
        metavar="GPUS",
        help="fractions share a GPU, 0 trains on CPUs (default: an equal share)",
    )
    add("--max-seconds", type=float, metavar="S", help="save and end all trials after this time (default: no limit)")
    add("--seed", type=int, default=0, help="of the choice of trials; run.seed is the training's (default: 0)")
    add(
        "--first-rung",
        type=float,
        metavar="SHARE",
        default=1 / 9,
        help="of a run, where asha compares first (default: 1/9)",
    )
    add("--reduction", type=float, default=3.0, help="asha lets one in so many go on from rung to rung (default: 3)")
    parser.set_defaults(run=_sweep)


def _sweep(arguments: argparse.Namespace) -> int:
    from crmuons import config
    from tune.options import Options
    from tune.spaces import Space

    settings = config.load(arguments.preset, arguments.words)
    space = Space.default(settings) if arguments.space is None else Space.load(arguments.space)
    options = Options(**{name: getattr(arguments, name) for name in Options.__dataclass_fields__})
    space.check(settings)
    options.check(space, settings)  # Before Ray, whose import takes seconds.
    from tune.sweep import run_sweep

    result = run_sweep(settings, space, options)
    print(result.describe())
    if result.outcome == "interrupted":
        return INTERRUPTED
    if result.outcome == "complete" and result.best is None:
        print("crmuons sweep: no trial reached its end with a score; the reasons are in trials.csv", file=sys.stderr)
        return 1
    return 0


def _add_evaluate(commands: Commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="compare a model, or generated events, with held-out true ones",
        description="Compare generated events with true ones, beside the floor (truth against truth) and two cheap rivals. "
        "What the figures mean: docs/metrics.md.",
    )
    add = parser.add_argument
    add("--truth", nargs="+", required=True, metavar="DATA", help="true events: files, directories, globs or URLs")
    add("--split", choices=("test", "validation", "train", "all"), default="test", help="of the true showers")
    candidate = parser.add_mutually_exclusive_group(required=True)
    candidate.add_argument(
        "--model",
        nargs="+",
        default=(),
        metavar="DIR",
        help="a run, a checkpoint or a model directory; of several, each gets a directory below --out",
    )
    candidate.add_argument("--generated", nargs="+", default=(), metavar="DATA", help="events, in place of a model")
    add("--out", required=True, help="directory or URL for evaluation.json, report.html and figures")
    add(
        "--events", type=int, default=60_000, help="events on each side (default: 60000); the floor takes as many again"
    )
    add(
        "--training",
        nargs="+",
        default=(),
        metavar="DATA",
        help="for the rivals (default: what the model was trained on, or the training split of --truth)",
    )
    add(
        "--depth",
        choices=("slant", "vertical"),
        help="what the true files' depth_m is (default: as in the model's training; slant for --generated)",
    )
    add("--seed", type=int, default=0, help="of the draws and the halves")
    add(
        "--workers",
        type=int,
        metavar="N",
        help="Ray tasks on N CPUs here; 0 for this process alone (default: the cluster of RAY_ADDRESS if that is set, or else 0)",
    )
    parser.set_defaults(run=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    from crmuons.evaluation.inputs import Request, evaluate_request
    from crmuons.evaluation.reference import Settings
    from crmuons.evaluation.report import summary, write_report
    from crmuons.output import folder_at

    request = Request(
        truth=arguments.truth,
        split=arguments.split,
        models=arguments.model,
        generated=arguments.generated,
        training=arguments.training,
        depth=arguments.depth,
        settings=Settings(arguments.events, arguments.seed),
    )
    names = _report_names(request.models)
    with folder_at(arguments.out) as out, _pieces(arguments.workers) as pieces:
        for evaluation, name in zip(evaluate_request(request, pieces), names, strict=True):
            write_report(evaluation, out / name)
            print(f"{evaluation.about['candidate']}\n{summary(evaluation)}")
            if request.models:
                _track_evaluation(Path(evaluation.about["candidate"]), evaluation, out / name)
    for name in names:
        place = f"{arguments.out.rstrip('/')}/{name}".rstrip("/")
        print(f"report: {place}/report.html\nfigures: {place}/evaluation.json")


def _report_names(models: Sequence[str]) -> list[str]:
    """The directories of the reports, by the models' names, where there are several."""
    if len(models) < 2:
        return [""]
    names = [Path(model).name for model in models]
    return [name if names.count(name) == 1 else f"{number}-{name}" for number, name in enumerate(names, 1)]


def _pieces(workers: int | None) -> "AbstractContextManager[Pieces]":
    """Where an evaluation's work is done: in this process, or in Ray tasks."""
    cluster = "RAY_ADDRESS" in os.environ
    if workers is not None and (workers < 0 or (workers and cluster)):
        msg = f"--workers {workers}: wanted 0 or more, and none where RAY_ADDRESS names a cluster, whose CPUs are all used"
        raise ValueError(msg)
    if workers == 0 or (workers is None and not cluster):
        from crmuons.evaluation.pieces import in_process

        return in_process()
    from crmuons.ray_evaluate import on_ray

    return on_ray(num_cpus=workers)


def _track_evaluation(run: Path, evaluation: "Evaluation", out: Path) -> None:
    """Add the evaluation of a run to the run in MLflow; a server that is down is no failure of the evaluation."""
    from crmuons.journal import Journal
    from crmuons.tracking.results import add_results

    if not Journal.exists(run):
        return
    values = {f"evaluation/{name}": value for name, value in evaluation.flat().items()}
    try:
        run_id = add_results(run, values, int(evaluation.about["model_step"]), out)
    except (ConnectionError, BlockingIOError) as error:
        print(f"kept for `crmuons sync {run}`: {error}", file=sys.stderr)
    else:
        print(f"MLflow run: {run_id}")


def _add_settings(commands: Commands) -> None:
    parser = commands.add_parser("settings", help="list every setting of a run, with what it means")
    parser.set_defaults(run=_settings)


def _settings(_arguments: argparse.Namespace) -> None:
    from crmuons import config

    for path, (default, meaning) in config.settings().items():
        print(f"{path} = {default}\n    {meaning}")


def _add_generate(commands: Commands) -> None:
    parser = commands.add_parser(
        "generate",
        help="draw muon bundles from a trained model",
        description="Draw one event for each primary (docs/generation.md). The same command goes on where it was interrupted.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, help="a run, a checkpoint or a model directory; a path or a URL")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--primaries", nargs="+", metavar="URL", help="Parquet files, directories, globs or URLs")
    source.add_argument(
        "--spectrum",
        nargs="+",
        metavar="NAME=VALUE",
        help="draw the primaries: events=N energy_gev=LOW:HIGH gamma=G composition=p:SHARE,He:SHARE,... zenith_deg=LOW:HIGH "
        "depth_m=LOW:HIGH (vertical) cylinder_m=LENGTH:RADIUS",
    )
    add("--vertical", action="store_true", help="the primaries' depth_m is the vertical depth")
    add("--out", required=True, help="directory or URL for the Parquet files")
    add("--seed", type=int, default=0, help="same seed, model and primaries, same bundles")
    add("--device", default="auto", help="cpu, cuda, or auto: a GPU where there is one")
    add(
        "--counts",
        type=_counts,
        default="predict",
        help="N: predict (draw it), column (the primaries' files), or a number",
    )
    add("--max-muons-per-event", type=int, metavar="CAP", help="events with more muons get this many")
    add(
        "--events-per-shard",
        type=int,
        help="rows of a file, a multiple of 1024 (default: such that it has 2 million muons)",
    )
    add(
        "--strict",
        action="store_true",
        help="refuse primaries outside the trained range instead of flagging their events",
    )
    parser.set_defaults(run=_generate)


def _counts(text: str) -> int | str:
    if text in {"predict", "column"}:
        return text
    if text.isdecimal():
        return int(text)
    msg = f"'{text}' is none of: predict, column, a number of muons"
    raise argparse.ArgumentTypeError(msg)


def _primaries(arguments: argparse.Namespace) -> "Source":
    from crmuons.primaries import PrimaryFiles
    from crmuons.spectrum import Spectrum

    if arguments.primaries:
        return PrimaryFiles(
            arguments.primaries, with_counts=arguments.counts == "column", vertical_depth=arguments.vertical
        )
    if arguments.counts == "column" or arguments.vertical:
        msg = "--counts column and --vertical say how --primaries files are read; a spectrum has neither"
        raise ValueError(msg)
    return Spectrum.parse(arguments.spectrum, arguments.seed)


def _generate(arguments: argparse.Namespace) -> int:
    from crmuons import shards
    from crmuons.generate import choose_device, load_generator
    from crmuons.output import Output
    from crmuons.request import Options

    options = Options(
        device=choose_device(arguments.device, elsewhere="RAY_ADDRESS" in os.environ),
        seed=arguments.seed,
        counts=arguments.counts,
        max_muons_per_event=arguments.max_muons_per_event,
        strict=arguments.strict,
        events_per_shard=arguments.events_per_shard,
    )
    generator = load_generator(arguments.model)
    source = _primaries(arguments)
    try:
        work = shards.prepare(Output.at(arguments.out), generator, source, options)
        if work.is_for_ray:
            from crmuons.ray_generate import generate
        else:
            from crmuons.shards import generate
        tally = generate(generator, source, work)
    except KeyboardInterrupt:
        print("crmuons generate: interrupted; the same command goes on from the finished shards", file=sys.stderr)
        return INTERRUPTED
    print(f"{tally.events} events with {tally.muons} muons in {arguments.out}")
    print(f"{tally.outside_training} outside the trained range, {tally.capped} capped")
    return 0


def _add_export(commands: Commands) -> None:
    parser = commands.add_parser(
        "export",
        help="write a model as a directory that generates with torch and numpy alone",
        description="Write weights and a Python file that needs torch and numpy alone, after checking that both generate the "
        "same; with --onnx also ONNX graphs, checked in onnxruntime (docs/generation.md).",
    )
    parser.add_argument("model", help="a run, a checkpoint or a model directory; a path or a URL")
    parser.add_argument("--out", required=True, help="new directory, or a URL of one")
    parser.add_argument("--onnx", action="store_true", help="also multiplicity.onnx and generator.onnx (crmuons[onnx])")
    parser.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> None:
    from crmuons.export import export

    export(arguments.model, arguments.out, onnx=arguments.onnx)
    print(f"model in {arguments.out}; its README.txt says how to use it")


def _add_benchmark(commands: Commands) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure the speed on this machine",
        description="Time a part beside its reference, in turns; print medians and quartiles as a table and as JSON, and log "
        "them to MLflow (docs/performance.md).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("suite", choices=("step", "read", "train", "generate", "scale"), help="what is measured")
    add("--rounds", type=int, default=5, help="times that each of the rivals runs")
    add("--threads", type=int, default=os.cpu_count() or 1, help="torch threads of this process")
    add("--device", default="cpu", help="of step and generate: cpu or cuda")
    add(
        "--data",
        nargs="+",
        default=(),
        metavar="DATA",
        help="event Parquet for read and train; simulated where not given",
    )
    add("--workers", type=int, default=1, help="Ray Train workers of train; 0: no Ray, in train and in read")
    add("--events", type=int, default=2048, help="of a worker's batch in train")
    add(
        "--out",
        type=Path,
        help="new directory for results.json and what the suite needs (default: benchmarks/SUITE-TIME)",
    )
    parser.set_defaults(run=_benchmark)


def _benchmark(arguments: argparse.Namespace) -> None:
    from crmuons.benchmark import read_through_ray
    from crmuons.benchmark.command import Options, run
    from crmuons.ray_train import run_training

    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    results = run(
        arguments.suite,
        Options(
            rounds=arguments.rounds,
            threads=arguments.threads,
            device=arguments.device,
            data=arguments.data,
            workers=arguments.workers,
            events=arguments.events,
            out=arguments.out or Path("benchmarks") / f"{arguments.suite}-{now}",
            start=run_training,
            read_through_ray=read_through_ray.run,
        ),
    )
    print(results.pop("table"))
    print(json.dumps(results))


def _add_login(commands: Commands) -> None:
    parser = commands.add_parser(
        "login",
        help="get a token for pelican:// URLs",
        description="Log in, in a browser anywhere, to the issuer of the namespaces of these URLs. The login is renewed by "
        "itself; it lies in a file that only you can read, which every node of a run must see (docs/pelican.md).",
    )
    parser.add_argument("read", nargs="*", metavar="URL", help="what will be read: files, directories or globs")
    parser.add_argument("--write", nargs="+", default=[], metavar="URL", help="where results will be written")
    parser.set_defaults(run=_login)


def _login(arguments: argparse.Namespace) -> None:
    import segno

    from crmuons.pelican.login import log_in
    from crmuons.pelican.scopes import scopes_by_issuer

    def show(url: str, code: str) -> None:
        segno.make(url).terminal(compact=True)
        print(f"open {url} in any browser and confirm the code {code}", flush=True)

    wanted = scopes_by_issuer(arguments.read, arguments.write)
    if not wanted:
        msg = "name the pelican:// URLs to read, or those to write with --write"
        raise ValueError(msg)
    for issuer, scopes in wanted.items():
        print(f"logging in to {issuer} for {' '.join(scopes)}")
        print(f"logged in; the login is in {log_in(issuer, scopes, show)}")


COMMANDS: tuple[Callable[..., None], ...] = (
    _add_simulate,
    _add_convert,
    _add_inspect,
    _add_prepare,
    _add_train,
    _add_sweep,
    _add_evaluate,
    _add_settings,
    _add_generate,
    _add_export,
    _add_sync,
    _add_login,
    _add_benchmark,
)

if __name__ == "__main__":
    sys.exit(main())
