"""Text files and folders as language-model data: documents, encodings and what is refused."""

import json
import os

import pytest
from documents import one_line, texts_of

from ici.data import TextFiles, commands, resolve
from ici.data.cache import entry_path, root
from ici.data.dataset import SPLITS
from ici.data.language import bytes_per_token
from ici.errors import InputError


def folder(tmp_path, files):
    top = tmp_path / "texts"
    for name, content in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return top


def test_prepare_and_show_tell_the_packing(tmp_path):
    spec = f"text_files:{folder(tmp_path, {f'{i}.txt': f'a text {i}' for i in range(40)})}"
    assert commands.prepare(spec) == entry_path(resolve(spec))
    facts = commands.show(spec)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["task"] == "language_model"
    dataset = resolve(spec).load()
    train = dataset.train.inputs
    assert facts["splits"]["train"] == {
        "size": len(train),
        "documents": 32,
        "tokens": int((train != 0).sum()),
        "labels": int((train != 0).sum()) - 1,
        "padding_share": float((train == 0).mean()),
    }
    assert facts["bytes_per_token"] == bytes_per_token(dataset)
    assert facts["examples"][0]["text"].startswith("\u27e8sep\u27e9a ")


def test_one_file_is_one_document(tmp_path):
    files = {f"{i:02}/d.txt": f"text {i}\n\nof one document, as it is \n" for i in range(20)}
    top = folder(tmp_path, {**files, "no.md": "not read", "UPPER.TXT": "read too"})
    dataset = resolve(f"text_files:{top}").load()
    texts = texts_of(dataset)
    assert sorted(sum(texts.values(), [])) == sorted([*files.values(), "read too"])
    assert [len(part) for part in texts.values()] == [17, 2, 2]
    assert dataset.name == "text_files:texts"


def test_blank_lines_part_documents(tmp_path):
    parts = [f"paragraph {i}\nof two lines" for i in range(30)]
    gaps = ["\n\n", "\n \t\n", "\n\n\n\n", "\r\n\r\n"]
    text = "\n\n" + "".join(part + gaps[i % 4] for i, part in enumerate(parts))
    top = folder(tmp_path, {"a.txt": text})
    texts = texts_of(TextFiles(str(top / "a.txt"), split_at_blank_lines=True).load())
    assert sorted(sum(texts.values(), [])) == sorted(parts)
    assert [len(part) for part in texts.values()] == [24, 3, 3]


def test_repeated_texts_stay_in_train(tmp_path):
    top = folder(tmp_path, {f"{i}.txt": f"Text  {i // 2 if i < 10 else i}" for i in range(30)})
    for seed in range(5):
        texts = texts_of(TextFiles(str(top), sequence_length=8, split_seed=seed).load())
        assert sum(texts["train"].count(f"Text  {i}") for i in range(5)) == 10


def test_a_single_document_is_cut_in_its_order(tmp_path):
    text = "".join(f"line {i} \u00e9\U0001f600\n" for i in range(100))
    top = folder(tmp_path, {"a.txt": text})
    texts = texts_of(TextFiles(str(top), sequence_length=32, held_out=0.05).load())
    assert [len(part) for part in texts.values()] == [1, 1, 1]
    parts = [texts[name][0] for name in SPLITS]
    assert "".join(parts) == text
    assert [len(part) / len(text) for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=1e-3)


def test_two_documents_have_no_test_split(tmp_path):
    top = folder(tmp_path, {"a.txt": "first text", "b.txt": "other text"})
    dataset = TextFiles(str(top), sequence_length=8).load()
    texts = texts_of(dataset)
    assert [len(part) for part in texts.values()] == [1, 1, 0]
    assert dataset.test.inputs.shape == (0, 8)


def test_byte_order_marks_line_ends_and_emoji(tmp_path):
    same = "one\n\ntwo \U0001f600\n"
    forms = [same.encode(), b"\xef\xbb\xbf" + same.encode()]
    forms += [same.replace("\n", end).encode() for end in ("\r\n", "\r")]
    seen = []
    for i, form in enumerate(forms):
        top = folder(tmp_path / str(i), {"a.txt": form, "b.txt": "long enough for a row"})
        texts = texts_of(TextFiles(str(top), sequence_length=4).load())
        seen.append({text for part in texts.values() for text in part})
    assert seen == [{same, "long enough for a row"}] * 4


def test_a_file_that_changed_is_read_again(tmp_path):
    top = folder(tmp_path, {"a.txt": "x" * 50, "b.txt": "y" * 50})
    config = TextFiles(str(top), sequence_length=8)
    before = config.load().digest
    (top / "b.txt").write_text("z" * 51)
    assert config.load().digest != before


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"good caf\xe9 bad", r"a\.txt is not UTF-8 at byte 8 \(0xe9\)"),
        (b"\xef\xbb\xbfgood \xff", r"a\.txt is not UTF-8 at byte 8 \(0xff\)"),
        ("abc".encode("utf-16"), r"a\.txt is not UTF-8 at byte 0 \(0xff\)"),
        (b"cut \xe2\x82", r"a\.txt is not UTF-8 at byte 4 \(0xe2\)"),
    ],
)
def test_what_is_not_utf8_is_named_with_its_byte(tmp_path, content, where):
    top = folder(tmp_path, {"a.txt": content, "b.txt": "a second document"})
    with pytest.raises(InputError, match=where) as error:
        TextFiles(str(top), sequence_length=4).load()
    assert str(top / "a.txt") in one_line(error)
    assert not root().exists()
    texts = texts_of(TextFiles(str(top), sequence_length=2, errors="replace").load())
    assert any("\ufffd" in text for part in texts.values() for text in part)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.md": "text"}, r"holds no \.txt file"),
        ({"a.txt": ""}, "holds no text: wanted a document"),
        ({"a.txt": " \n\n", "b.txt": "\ufeff"}, "holds no text: wanted a document"),
        ({"a.txt": "few", "b.txt": "few more"}, r"has \d training tokens and sequence_length is"),
        ({"a.txt": "ab"}, "has no document for its validation split|has no document for its test"),
        ({"a.txt": "same text", "b.txt": "same  text"}, "no document for its validation split"),
    ],
)
def test_too_little_text_is_refused(tmp_path, files, message):
    top = folder(tmp_path, files)
    with pytest.raises(InputError, match=message) as error:
        TextFiles(str(top)).load()
    one_line(error)
    assert not root().exists()


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(InputError, match=f"no file or folder {tmp_path / 'none'}") as error:
        resolve(f"text_files:{tmp_path / 'none'}").load()
    one_line(error)
    with pytest.raises(InputError, match="write text_files:PATH"):
        resolve("text_files")


def test_an_unreadable_file_is_named(tmp_path):
    top = folder(tmp_path, {"a.txt": "x" * 50, "b.txt": "y" * 50})
    (top / "a.txt").chmod(0)
    if os.access(top / "a.txt", os.R_OK):
        pytest.skip("the superuser may read any file")
    with pytest.raises(InputError, match=r"cannot read .*a\.txt"):
        TextFiles(str(top)).load()


def test_more_tokens_than_the_text_supports(tmp_path):
    pytest.importorskip("tokenizers")
    top = folder(tmp_path, {"a.txt": "abcabc" * 50, "b.txt": "other"})
    with pytest.raises(InputError, match=r"vocab_size is 4096, .* supports \d+ tokens") as error:
        TextFiles(str(top), "bpe").load()
    one_line(error)
    assert not root().exists()
