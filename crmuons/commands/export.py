"""Write a model as a directory that generates with torch and numpy alone."""

import argparse

from crmuons.storage.redact import printable


def add(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.description = (
        "Write the weights and a Python file that needs only torch and numpy. The command checks that both generate "
        "the same bundles as the model. With --onnx it also writes ONNX graphs and checks them in onnxruntime "
        "(docs/generation.md)."
    )
    from crmuons.config.options import Output, Place, option

    parser.add_argument(
        "model",
        type=option(Place),
        help="a run, a checkpoint or a model directory (a path or a URL), or `models:/NAME@ALIAS` in MLflow",
    )
    parser.add_argument("--out", type=option(Output), required=True, help="new directory, or its URL")
    parser.add_argument(
        "--onnx", action="store_true", help="also write multiplicity.onnx and generator.onnx (needs crmuons[onnx])"
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons.generation.export import export
    from crmuons.tracking.logged_models import local_place

    export(local_place(arguments.model), arguments.out, onnx=arguments.onnx)
    print(printable(f"model in {arguments.out}; its README.txt explains how to use it"))
