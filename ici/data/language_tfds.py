"""Language-model data that TFDS keeps: Tiny Shakespeare and the One Billion Word benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ici.data.cache import CachedData
from ici.data.dataset import Dataset
from ici.data.language import Documents, assemble, check_packages, check_settings
from ici.data.packing import Packing
from ici.data.registry import register
from ici.data.sampler import permutation
from ici.data.text import check_seed
from ici.data.tokenizers import TokenizerName
from ici.errors import InputError

_NEEDS = (
    "pip install -e '.[tfds]' (and '.[demo]' for tokenizer bpe), and network once or a directory "
    "prepared as ArrayRecord"
)
_BATCH = 4096


@register("tiny_shakespeare")
@dataclass(frozen=True)
class TinyShakespeare(CachedData):
    """1.1 million characters of Shakespeare (Karpathy 2015), tokens [N, sequence_length].

    Each split is one document: the first 90 % of the characters for training, then 5 % and 5 %, as
    TFDS cuts them. Raises `InputError` without network and prepared data.
    """

    tokenizer: TokenizerName = "bytes"
    vocab_size: int = 1024
    sequence_length: int = 128
    packing: Packing = "concatenate"
    stream: bool | None = None

    kind: ClassVar[str] = "text"
    needs: ClassVar[str] = _NEEDS

    def __post_init__(self) -> None:
        check_settings(self)

    def build(self, refresh: bool = False) -> Dataset:
        check_packages(self)
        texts = _open("tiny_shakespeare", refresh)
        documents = Documents(
            lambda: texts.read("train"),
            list(texts.read("validation")),
            list(texts.read("test")),
        )
        return assemble("tiny_shakespeare", documents, self, "90/5/5 of the characters in order")


@register("lm1b")
@dataclass(frozen=True)
class Lm1b(CachedData):
    """The One Billion Word benchmark (Chelba et al. 2013), tokens [N, sequence_length].

    One sentence is one document. Training sentences are the official ones; `held_out` of the
    official held-out sentences are validation and as many others test, drawn by `split_seed`. The
    training split is read from disk (`stream`). Raises `InputError` without network and prepared
    data.
    """

    tokenizer: TokenizerName = "bpe"
    vocab_size: int = 32768
    sequence_length: int = 256
    packing: Packing = "concatenate"
    held_out: int = 10_000
    split_seed: int = 0
    stream: bool | None = None

    kind: ClassVar[str] = "text"
    needs: ClassVar[str] = _NEEDS

    def __post_init__(self) -> None:
        if self.held_out < 1:
            raise InputError(f"held_out is {self.held_out}: wanted at least 1 sentence")
        check_settings(self)
        check_seed(self.split_seed)

    def build(self, refresh: bool = False) -> Dataset:
        check_packages(self)
        texts = _open("lm1b", refresh)
        held_out = list(texts.read("test"))
        size = min(self.held_out, len(held_out) // 2)
        order = permutation(len(held_out), self.split_seed, 0)
        documents = Documents(
            lambda: texts.read("train"),
            [held_out[i] for i in order[:size]],
            [held_out[i] for i in order[size : 2 * size]],
        )
        notes = f"one sentence a document; {size} held-out sentences each validation and test"
        return assemble("lm1b", documents, self, notes)


@dataclass(frozen=True)
class _Texts:
    """The feature "text" of an opened TFDS directory."""

    builder: Any
    fix: str

    def check(self) -> None:
        """Reads everything once, so that damage is found before anything is made of a part."""
        for split in self.builder.info.splits:
            for _ in self.read(split):
                pass

    def read(self, split: str) -> Iterator[str]:
        """Every text of a split; `InputError` naming the file for damage and for other bytes."""
        from ici.data.tfds_read import damaged

        info = self.builder.info
        if split not in info.splits:
            raise InputError(
                f"{self.builder.data_dir} has the splits {', '.join(sorted(info.splits))}: "
                f"wanted {split}"
            )
        if "text" not in info.features:
            raise InputError(
                f"{self.builder.data_dir} has the features {', '.join(sorted(info.features))}: "
                "wanted text"
            )
        shards = zip(info.splits[split].filepaths, info.splits[split].shard_lengths, strict=True)
        for path, wanted in shards:
            records = _records(path, wanted)
            while True:
                try:
                    record = next(records, None)
                    if record is None:
                        break
                    text = info.features.deserialize_example_np(record)["text"].decode()
                except Exception as error:  # the reader and the decoder raise their own
                    raise damaged(Path(path), error, self.fix) from None
                yield text


def _records(path: Any, wanted: int) -> Iterator[bytes]:
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path))
    try:
        if reader.num_records() != wanted:
            raise ValueError(f"{reader.num_records()} records where {wanted} are listed")
        for start in range(0, wanted, _BATCH):
            yield from reader.read(start, min(start + _BATCH, wanted))
    finally:
        reader.close()


def _open(name: str, refresh: bool) -> _Texts:
    from ici.data.tfds_prepare import locate, prepare
    from ici.data.tfds_read import open_builder

    fix = f"run: ici data prepare {name} --rebuild"

    def opened(directory: Path) -> _Texts:
        texts = _Texts(open_builder(directory, fix), fix)
        if refresh:
            texts.check()
        return texts

    directory = locate(name)
    if directory is None:
        return opened(prepare(name))
    try:
        return opened(directory)
    except InputError:
        if not refresh:
            raise
        return opened(prepare(name, overwrite=True))
