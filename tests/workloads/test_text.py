"""Text as a task: symbols, windows, the split, and the bigram entropy against a hand count."""

from math import log

import pytest
import torch

from pycomm.errors import ArgumentError
from pycomm.workloads import data, text
from pycomm.workloads.text import Vocabulary, Windows, bigram_entropy, text_task


def test_bigram_entropy_equals_a_hand_count():
    # "aabab": the pairs are aa, ab, ba, ab. After a: a once, b twice; after b: a, always.
    symbols = Vocabulary.of("aabab").encode("aabab")
    expected = (1 * log(3 / 1) + 2 * log(3 / 2)) / 4
    assert bigram_entropy(symbols, 3) == pytest.approx(expected, abs=1e-15)


def test_bigram_entropy_of_a_predictable_text_is_zero():
    assert text_task("cycle", "abc" * 1000).bigram_entropy == 0.0


def test_bigram_entropy_is_what_the_best_table_scores():
    symbols = torch.randint(0, 5, (3000,), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(5, 5, dtype=torch.float64)
    counts.index_put_((symbols[:-1], symbols[1:]), torch.tensor(1.0).double(), accumulate=True)
    scores = (counts / counts.sum(1, keepdim=True)).log()[symbols[:-1]]
    loss = torch.nn.functional.cross_entropy(scores, symbols[1:])
    assert bigram_entropy(symbols, 5) == pytest.approx(loss.item(), rel=1e-12)


def test_rare_characters_share_one_symbol():
    vocabulary = Vocabulary.of("a" * 99 + "é", rare=50)
    assert vocabulary.characters == "a"
    assert len(vocabulary) == 2
    assert vocabulary.encode("aé\U0001f600a").tolist() == [1, 0, 0, 1]


def test_large_vocabularies_fit():
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
    vocabulary = Vocabulary.of(characters)
    assert vocabulary.encode(characters).tolist() == list(range(1, 301))


def test_windows_pair_each_symbol_with_the_next():
    windows = Windows(torch.arange(12, dtype=torch.uint8), context=5)
    assert len(windows) == 2
    x, y = windows[1]
    assert x.tolist() == [5, 6, 7, 8, 9]
    assert y.tolist() == [6, 7, 8, 9, 10]
    assert x.dtype == y.dtype == torch.int64
    assert windows[-1][0].tolist() == x.tolist()
    with pytest.raises(IndexError, match="window 2 of 2"):
        windows[2]


def test_the_end_of_a_text_is_held_out():
    task = text_task("numbers", "".join(map(chr, range(1000, 11000))), context=16)
    seen = torch.cat([task.train[i][1] for i in range(len(task.train))])
    held = torch.cat([task.test[i][0] for i in range(len(task.test))])
    assert held.min() > seen.max()
    assert held.min() == 9501  # symbol 0 is the unknown one
    assert task.classes == 10001


def test_short_texts_are_refused():
    with pytest.raises(ArgumentError, match=r"poem has 5 characters; at least 1300 are needed"):
        text_task("poem", "roses")


def test_standard_library_is_the_same_each_time():
    first, second = data.load("text"), data.load("text")
    assert first.input_shape == (64,)
    assert 90 <= first.classes <= 256
    assert len(first.train) > 50_000
    assert len(first.train) > 18 * len(first.test) > 0
    assert torch.equal(first.train.symbols, second.train.symbols)
    assert torch.equal(first.test.symbols, second.test.symbols)
    assert first.bigram_entropy == second.bigram_entropy
    assert 2.0 < first.bigram_entropy < 3.0


def test_folders_are_read_in_the_order_of_paths(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name, content in [("b/x.md", "2"), ("a.txt", "1"), ("c.txt", "3"), ("d.bin", "no")]:
        (tmp_path / name).write_text(content)
    (tmp_path / ".git" / "e.txt").write_text("no")
    assert sorted(text.read_folder(tmp_path)) == ["1", "2", "3"]
    assert text.read_folder(tmp_path) == text.read_folder(tmp_path)


def test_bytes_that_are_not_utf8_are_tolerated(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\r\nau lait")
    assert text.read_folder(tmp_path) == "caf\ufffd\nau lait"


def test_folder_and_file_make_the_same_task(tmp_path):
    (tmp_path / "a.txt").write_text("to be or not to be\n" * 100)
    folder, file = data.load(str(tmp_path)), data.load(str(tmp_path / "a.txt"))
    assert torch.equal(folder.train.symbols, file.train.symbols)
    assert folder.classes == len(set("to be or not to be\n")) + 1


def test_folder_without_text_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"\0")
    with pytest.raises(ArgumentError, match=r"holds no text: files ending in \.txt \.md"):
        data.load(str(tmp_path))
