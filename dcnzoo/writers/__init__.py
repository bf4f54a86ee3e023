"""Writers: one file per output format. A new format is a module here and an entry of `WRITERS`."""

from dcnzoo.writers.base import ImageResult, Stems, Writer
from dcnzoo.writers.coco import IMAGE_LIST, CocoWriter, ImageIds
from dcnzoo.writers.crops import CropWriter
from dcnzoo.writers.csv import CsvWriter
from dcnzoo.writers.errors import ErrorLog
from dcnzoo.writers.images import ImageWriter
from dcnzoo.writers.journal import JOURNAL, Listing, Progress, read_journal
from dcnzoo.writers.jsonl import JsonlWriter
from dcnzoo.writers.shard import Shard
from dcnzoo.writers.yolo import CLASS_LIST, YoloWriter

WRITERS: dict[str, type[Writer]] = {
    "jsonl": JsonlWriter,
    "coco": CocoWriter,
    "csv": CsvWriter,
    "yolo": YoloWriter,
}
"""Data formats, by the name that `--format` takes."""

PRODUCTS: tuple[str, ...] = (
    *(writer.product for writer in WRITERS.values()),
    ImageWriter.product,
    CropWriter.product,
    ErrorLog.product,
    IMAGE_LIST,
    CLASS_LIST,
)
"""Everything that a run may put into its output folder."""

__all__ = [
    "JOURNAL",
    "PRODUCTS",
    "WRITERS",
    "CropWriter",
    "ErrorLog",
    "ImageIds",
    "ImageResult",
    "ImageWriter",
    "Listing",
    "Progress",
    "Shard",
    "Stems",
    "Writer",
    "read_journal",
]
