"""Generate into a directory, and read what is there."""

import pyarrow as pa
import pyarrow.parquet as pq

from crmuons.generation import writer
from crmuons.generation.load import load_generator
from crmuons.generation.primaries import PrimaryFiles
from crmuons.generation.request import GenerationOptions
from crmuons.models import blocks
from crmuons.storage.output import Output
from crmuons.storage.ownership import hold

EVENTS_PER_BLOCK = blocks.EVENTS_PER_BLOCK["cpu"]
NUM_EVENTS = 3000  # Three blocks, the last one not full.


def generate(model_dir, primaries_file, out, **options):
    generator = load_generator(model_dir)
    source = PrimaryFiles([str(primaries_file)], with_counts=options.get("counts") == "column")
    with hold(out):
        work = writer.plan_generation(Output.at(out), generator, source, GenerationOptions(**options))
        return writer.generate(generator, source, work)


def read(out):
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("*.parquet"))]).combine_chunks()
