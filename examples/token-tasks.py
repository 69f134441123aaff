"""Makes labelled words and questions from raw text, for examples/token-tasks.toml:

    python3 examples/token-tasks.py TEXT runs/names

TEXT has the folders train and dev with text files, a sentence a line. A name is a word with a capital that no file has
in lower case; a question is a sentence whose only name is "who", to be answered from six sentences. All is written in
lower case, so that a name has to be told by what stands around it.
"""

import json
import pathlib
import random
import re
import sys

SENTENCES = {"train": 800, "dev": 400}


def read(folder):
    """The sentences of each file, as lists of words and marks."""
    cut = re.compile(r"\w+(?:'\w+)*|[^\w\s]").findall
    files = sorted(folder.glob("*.txt"))
    return [[cut(line) for line in path.open(encoding="utf-8") if line.strip()] for path in files]


def labels(sentence, common):
    """`B-NAME`, `I-NAME` or `O` for each word."""
    is_name = [word[0].isupper() and word not in ("I", "O") and word.lower() not in common for word in sentence]
    before = [False] + is_name
    return ["O" if not name else "I-NAME" if previous else "B-NAME" for previous, name in zip(before, is_name)]


def lower(words):
    return " ".join(words).lower()


def names(books, common, count):
    """Sentences of 8 to 40 words, most of them with a name, in CoNLL's columns."""
    sentences = [sentence for book in books for sentence in book if 8 <= len(sentence) <= 40]
    named = [one for one in sentences if "B-NAME" in labels(one, common) or random.random() < 0.1]
    lines = []
    for sentence in random.sample(named, count):
        lines += [f"{word.lower()} {label}\n" for word, label in zip(sentence, labels(sentence, common))] + ["\n"]
    return "".join(lines)


def questions(books, common, count):
    """Six sentences each, and one of them with "who" in place of its name, in SQuAD's format."""
    paragraphs = []
    while len(paragraphs) < count:
        book = random.choice(books)
        start = random.randrange(len(book) - 6)
        asked = start + random.randrange(6)
        sentence, found = book[asked], labels(book[asked], common)
        if found.count("B-NAME") != 1 or not 8 <= len(sentence) <= 30:
            continue
        first, last = found.index("B-NAME"), len(found) - found.count("O") + found.index("B-NAME")
        before = lower([word for earlier in book[start:asked] for word in earlier] + sentence[:first])
        answer = {"text": lower(sentence[first:last]), "answer_start": len(before) + (before != "")}
        question = lower(sentence[:first] + ["who"] + sentence[last:])
        asks = {"id": str(len(paragraphs)), "question": question, "answers": [answer]}
        context = lower(word for one in book[start : start + 6] for word in one)
        paragraphs.append({"context": context, "qas": [asks]})
    return json.dumps({"version": "1.1", "data": [{"title": "names", "paragraphs": paragraphs}]})


text, output = map(pathlib.Path, sys.argv[1:])
books = {split: read(text / split) for split in SENTENCES}
common = {word for split in books.values() for book in split for line in book for word in line if word.islower()}
output.mkdir(parents=True, exist_ok=True)
for split, count in SENTENCES.items():
    random.seed(0)
    (output / f"names-{split}.conll").write_text(names(books[split], common, count), encoding="utf-8")
    (output / f"who-{split}.json").write_text(questions(books[split], common, count // 2), encoding="utf-8")
