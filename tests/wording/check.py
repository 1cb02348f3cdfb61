"""Checks the wording of the project: check.py [--list] [PATH...]

The lists in this folder configure the check: paths.txt the files, words.txt the expressions to avoid, exceptions.txt the
allowed uses of these expressions, and long_sentences.txt the allowed sentences with more than 30 words in Markdown files.
PATHs replace paths.txt. The script prints each finding as FILE:LINE, and exits with 1 if there is a finding. --list prints the
files instead.
"""

import argparse
import bisect
import fnmatch
import pathlib
import re
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
LONGEST = 30

# In programs, only comments and strings are English. One pattern finds both, because each can contain the signs of the other.
COMMENTS = r"//[^\n]*|/\*.*?\*/"
STRINGS = r'"(?:[^"\\]|\\.)*"'
RUST = re.compile(rf"""{COMMENTS}|r(?P<hashes>#*)".*?"(?P=hashes)|{STRINGS}|'(?:[^'\\\n]|\\.)'""", re.S)
SCRIPT = re.compile(rf"{COMMENTS}|{STRINGS}|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`", re.S)
STYLE = re.compile(r"/\*.*?\*/", re.S)
# In pages, the text and the values of these attributes are English.
TEMPLATE = re.compile(r"\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\}", re.S)
TAG = re.compile(r"<[^>]*>", re.S)
SHOWN = re.compile(r'\b(?:title|aria-label|placeholder|alt)="([^"]*)"')
LINK = re.compile(r"https?://[^\s)\"'>]+")


def blank(text):
    """Returns spaces of the same length, with the line breaks."""
    return re.sub(r"[^\n]", " ", text)


def only(pattern, text):
    """Returns the matches of a pattern, at the same positions."""
    out, end = [], 0
    for found in pattern.finditer(text):
        out += [blank(text[end:found.start()]), found[0]]
        end = found.end()
    return "".join(out) + blank(text[end:])


def attributes(tag):
    """Returns the attributes of a tag that a page shows, at the same positions."""
    out = list(blank(tag[0]))
    for found in SHOWN.finditer(tag[0]):
        out[found.start(1):found.end(1)] = found[1]
    return "".join(out)


def page(text):
    return TAG.sub(attributes, TEMPLATE.sub(lambda found: blank(found[0]), text))


def english(path, text):
    """Returns the English text of a file, with spaces in place of all other characters."""
    extract = {
        ".rs": lambda text: only(RUST, text),
        ".go": lambda text: only(SCRIPT, text),
        ".js": lambda text: only(SCRIPT, text),
        ".mjs": lambda text: only(SCRIPT, text),
        ".css": lambda text: only(STYLE, text),
        ".html": page,
    }.get(path.suffix, lambda text: text)
    return LINK.sub(lambda found: blank(found[0]), extract(text))


def rows(name, columns):
    """Yields the rows of a list: columns with " | " between them."""
    for number, line in enumerate((HERE / name).read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            row = [column.strip() for column in line.split(" | ", columns - 1)]
            if len(row) != columns or not all(row):
                sys.exit(f"tests/wording/{name}:{number}: expected {columns} columns, with \" | \" between them")
            yield row


class Exceptions:
    """Rows with a path, a text and the reason. An unused row is an error."""

    def __init__(self, name):
        self.name, self.rows, self.used = name, list(rows(name, 3)), set()

    def has(self, path, text):
        found = [row for row in self.rows if fnmatch.fnmatch(path, row[0]) and row[1].lower() in text.lower()]
        self.used.update(map(tuple, found))
        return bool(found)

    def unused(self):
        return [f"tests/wording/{self.name}: unused: \"{row[0]} | {row[1]}\"" for row in self.rows
                if tuple(row) not in self.used]


class Words:
    def __init__(self):
        self.rows = [(re.compile(rf"\b(?:{pattern})\b", re.I), instead) for pattern, instead in rows("words.txt", 2)]
        # The words of a phrase can be on two lines, with the sign of a comment between them.
        gap = r"(?:\s|\n\s*(?:#|//[/!]?|\*|--)\s*)+"
        self.rows = [(re.compile(pattern.pattern.replace(" ", gap), re.I), instead) for pattern, instead in self.rows]
        self.any = re.compile("|".join(f"(?:{pattern.pattern})" for pattern, _ in self.rows), re.I)

    def find(self, text):
        for found in self.any.finditer(text):
            instead = next(instead for pattern, instead in self.rows if pattern.match(text, found.start()))
            yield found.start(), " ".join(re.sub(r"\n\s*(#|//[/!]?|\*|--)", " ", found[0]).split()), instead


def paragraphs(text):
    """Yields line numbers and texts of the paragraphs, list items and table cells of a Markdown file."""
    fence, first, lines = None, 0, []
    for number, line in enumerate(text.splitlines() + [""], 1):
        mark = re.match(r"\s*(```|~~~)", line)
        starts = re.match(r"\s*(?:[-*+]|\d+\.)\s", line)
        if lines and (mark or starts or not line.strip() or line.startswith(("#", "|"))):
            yield first, " ".join(lines)
            lines = []
        if mark:
            fence = None if fence == mark[1] else fence or mark[1]
        elif fence or not line.strip() or line.startswith("#"):
            pass
        elif line.startswith("|"):
            yield from ((number, cell) for cell in re.split(r"(?<!\\)\|", line))
        else:
            first = first if lines else number
            lines.append(re.sub(r"^\s*(?:[-*+]|\d+\.)\s", "", line.strip()))


def sentences(text):
    text = re.sub(r"`[^`]*`", "`code`", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.split(r"(?<=[.!?])[\"”)*]*\s+(?=[\"“(*\[`]*[A-Z0-9`])", text)


def long_sentences(text):
    for line, paragraph in paragraphs(text):
        for sentence in sentences(paragraph):
            words = [word for word in sentence.split() if re.search(r"\w", word)]
            if len(words) > LONGEST:
                yield line, len(words), " ".join(words)


def files(names):
    if not names:
        patterns = [row[0] for row in rows("paths.txt", 1)]
        listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                                capture_output=True, text=True).stdout.splitlines()
        # The last matching pattern decides, as in .gitignore.
        kept = [(pattern.removeprefix("!"), not pattern.startswith("!")) for pattern in patterns]
        matchers = [(re.compile(fnmatch.translate(pattern)), keep) for pattern, keep in kept]
        names = [name for name in listed if next((keep for matcher, keep in reversed(matchers) if matcher.match(name)), False)]
    for name in names:
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            yield name, path


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--list", action="store_true")
    options.add_argument("paths", nargs="*")
    options = options.parse_args()
    if options.list:
        print(*(name for name, _ in files(options.paths)), sep="\n")
        return 0
    words, exceptions, long = Words(), Exceptions("exceptions.txt"), Exceptions("long_sentences.txt")
    findings = []
    for name, path in files(options.paths):
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        breaks = [found.start() for found in re.finditer("\n", text)]
        for start, word, instead in words.find(english(path, text)):
            if not exceptions.has(name, word):
                findings.append(f"{name}:{bisect.bisect_left(breaks, start) + 1}: \"{word}\": {instead}")
        if path.suffix == ".md":
            for line, count, sentence in long_sentences(text):
                if not long.has(name, sentence):
                    findings.append(f"{name}:{line}: {count} words in one sentence: {sentence[:60]} …")
    if not options.paths:
        findings += exceptions.unused() + long.unused()
    print("\n".join(findings), end="\n" if findings else "")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
