"""Tiny Shakespeare and the One Billion Word benchmark as TFDS builders without TensorFlow.

As in `tfds_builders`: the same directories as those of the builders that ship with TFDS. Import
this module only where data are prepared.
"""

from __future__ import annotations

import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from ici.data.tfds_builders import Example, damaged_archive


class TinyShakespeare(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """40,000 lines of Shakespeare (Karpathy 2015) as one text per split: 90/5/5 by characters."""

    name = "tiny_shakespeare"
    BASE_URL: ClassVar[str] = (
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"
    )
    ARCHIVES: ClassVar[tuple[str, ...]] = ("input.txt",)
    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, base_url: str = BASE_URL, **kwargs: Any) -> None:
        self._url = f"{base_url.rstrip('/')}/{self.ARCHIVES[0]}"
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Plays of Shakespeare as plain text.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="https://github.com/karpathy/char-rnn",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        path = Path(str(dl_manager.download(self._url)))
        try:
            # The bytes decide, not the line ends of the machine.
            text = path.read_bytes().decode()
        except UnicodeDecodeError as error:
            raise damaged_archive(path, f"no UTF-8 at byte {error.start}") from None
        if len(text) < 40:
            raise damaged_archive(path, f"it holds {len(text)} characters")
        n_train = int(0.9 * len(text))
        n_validation = int(0.5 * (len(text) - n_train))
        ends = {"train": n_train, "validation": n_train + n_validation, "test": len(text)}
        starts = [0, *ends.values()]
        return {
            split: self._generate_examples(split, text[start:end])
            for (split, end), start in zip(ends.items(), starts, strict=False)
        }

    def _generate_examples(self, split: str, text: str) -> Iterator[Example]:
        yield split, {"text": text}


class Lm1b(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The One Billion Word benchmark (Chelba et al. 2013): 30.6 million sentences of news."""

    name = "lm1b"
    BASE_URL: ClassVar[str] = "http://www.statmt.org/lm-benchmark/"
    ARCHIVES: ClassVar[tuple[str, ...]] = (
        "1-billion-word-language-modeling-benchmark-r13output.tar.gz",
    )
    VERSION = tfds.core.Version("1.1.0")

    def __init__(self, *, base_url: str = BASE_URL, **kwargs: Any) -> None:
        self._url = f"{base_url.rstrip('/')}/{self.ARCHIVES[0]}"
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Sentences of news in random order, tokenized, one an example.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            supervised_keys=("text", "text"),
            homepage="http://www.statmt.org/lm-benchmark/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        archive = Path(str(dl_manager.download(self._url)))
        return {
            "train": self._generate_examples(archive, r"training-.*/news\.en-[^/]*"),
            "test": self._generate_examples(archive, r"heldout-.*/news\.en\.heldout-[^/]*"),
        }

    def _generate_examples(self, archive: Path, pattern: str) -> Iterator[Example]:
        member_name = re.compile(rf"(?:\./)?1-billion-word-[^/]*/{pattern}")
        found = False
        try:
            with tarfile.open(archive, "r:gz") as tar:
                for member in tar:
                    match = member_name.fullmatch(member.name)
                    file = tar.extractfile(member) if match else None
                    if file is None:
                        continue
                    found = True
                    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8")):
                        key = f"{member.name.rsplit('/', 1)[-1]}_{number}"
                        yield key, {"text": line.strip()}
        except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
            raise damaged_archive(archive, str(error)) from None
        if not found:
            raise damaged_archive(archive, f"it holds no sentences in {pattern}")


TEXT_BUILDERS: dict[str, type[TinyShakespeare] | type[Lm1b]] = {
    "tiny_shakespeare": TinyShakespeare,
    "lm1b": Lm1b,
}
