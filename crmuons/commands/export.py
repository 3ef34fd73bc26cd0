"""Write a model as a directory that generates with torch and numpy alone."""

import argparse


def add(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.description = (
        "Write weights and a Python file that needs torch and numpy alone, after checking that both generate the "
        "same; with --onnx also ONNX graphs, checked in onnxruntime (docs/generation.md)."
    )
    parser.add_argument("model", help="a run, a checkpoint or a model directory; a path or a URL")
    parser.add_argument("--out", required=True, help="new directory, or a URL of one")
    parser.add_argument("--onnx", action="store_true", help="also multiplicity.onnx and generator.onnx (crmuons[onnx])")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    from crmuons.generation.export import export

    export(arguments.model, arguments.out, onnx=arguments.onnx)
    print(f"model in {arguments.out}; its README.txt says how to use it")
