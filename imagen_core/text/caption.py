"""DeepFloyd IF's caption cleaning: what its training captions went through.

Off by default: it takes away capitals, digits within words, sizes, brackets, ampersands and kanji, so
"r2d2" and "a 3x5 grid" do not survive it. Needs the packages ftfy and beautifulsoup4.
"""

import re
from urllib.parse import unquote_plus

Rules = tuple[tuple[re.Pattern[str], str], ...]

DOMAIN = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/\-]*\b/?(?!@)"
FORMATS = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DASHES = "\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
DASHES += "\ufe31\ufe32\ufe58\ufe63\uff0d\\-"
# Strokes, phonetic extensions, enclosed, squared, extension A, hexagrams, unified: kana survive.
CJK = "\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff"
BAD = "#®•©™&@·º½¾¿¡§~()\\[\\]{}|\\\\/*"
MOST_MARKUP = 10_000_000  # characters times <
MANY_JOINERS = 3  # more than that of - and _ are taken for blanks


def rules(*pairs: tuple[str, str]) -> Rules:
    """Compiled rules: what is looked for, what takes its place.

    pairs   in the order in which they act
    """
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


PERSON = rules(("<person>", "person"))
HOST = re.compile(r"[a-z0-9.\-]+")
HOST_START = re.compile(r"\b(?=[a-z0-9.\-])")
DOMAIN_AT = re.compile(DOMAIN)
SCHEMES = tuple(re.compile(rf"\b{name}:(?:/{{1,3}}|[a-z0-9%])") for name in ("https?", "www"))
MARKS = rules(
    (r"@\w+\b", ""),
    (f"[{CJK}]+", ""),
    (f"[{DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"(?<!\S)\S+\.(?:{FORMATS})", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (f"[{BAD}]+", " "),
    (r"(?<!\s)\s+\.\s+", " "),
)
WORDS = rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FORMATS})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d[a-zA-Z\d]*\b", " "),
    (r"\b\d+(?:\.\d*)?[xх×]\d+(?:\.\d*)?\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
ENDS = rules(
    (r"^[\"']([\w\W]+)[\"']$", r"\1"), (r"^['_,\-:;]", ""), (r"['_,\-:+]$", ""), (r"^\.\S+$", "")
)


def clean_caption(text: str) -> str:
    """A caption as DeepFloyd IF was trained on: cleaned, and cleaned once more.

    text   any; the result is lower-cased and stripped
    """
    return clean_once(clean_once(text))


def clean_once(text: str) -> str:
    """One pass; not the same as two."""
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise missing("ftfy") from error

    text = apply(PERSON, unquote_plus(str(text)).strip().lower())
    for scheme in SCHEMES:
        text = without_links(text, scheme)
    text = apply(MARKS, text_of_html(text))
    if len(re.findall("[-_]", text)) > MANY_JOINERS:
        text = re.sub("[-_]", " ", text)
    text = unescaped(unescaped(fix_text(text))).strip()
    return apply(ENDS, apply(WORDS, text)).strip()


def without_links(text: str, scheme: re.Pattern[str]) -> str:
    """A text without what looks like the start of a link, and without names of domains.

    scheme   matches such a start

    As a rule of `\\b(?:scheme|DOMAIN)` would do it, but in a time that grows with the length alone: where a
    domain does not begin at the first place of a run of its letters, it begins nowhere in that run.
    """
    parts, position = [], 0
    start: re.Match[str] | None = scheme.search(text)
    domain = find_domain(text, 0)
    while first := min(filter(None, (start, domain)), key=re.Match.start, default=None):
        parts.append(text[position : first.start()])
        position = first.end()
        if start is not None and start.start() < position:
            start = scheme.search(text, position)
        if domain is not None and domain.start() < position:
            domain = find_domain(text, position)
    return "".join([*parts, text[position:]])


def find_domain(text: str, position: int) -> re.Match[str] | None:
    """The first name of a domain from a place on, or None."""
    while run := HOST.search(text, position):
        begin = HOST_START.search(text, run.start(), run.end())
        found = begin and DOMAIN_AT.match(text, begin.start())
        if found:
            return found
        position = run.end()
    return None


def apply(given: Rules, text: str) -> str:
    """A text after some rules."""
    for pattern, replacement in given:
        text = pattern.sub(replacement, text)
    return text


def unescaped(text: str) -> str:
    """A text without HTML's entities; itself where one is a number that Python refuses to read."""
    import html  # a tenth of a start, for one setting

    try:
        return html.unescape(text)
    except ValueError:
        return text


def text_of_html(text: str) -> str:
    """What a page of this source would read as; the text itself where it is no page, or a huge one.

    Python's parser goes on to the end from each < that opens no whole tag.
    """
    if text.count("<") * len(text) > MOST_MARKUP:
        return text
    try:
        from bs4 import BeautifulSoup
    except ImportError as error:
        raise missing("beautifulsoup4") from error
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "looks more like a file name"
        try:
            return BeautifulSoup(text, features="html.parser").text
        except Exception:  # such as on "<![&("; a prompt must never end a run
            return text


def missing(package: str) -> ModuleNotFoundError:
    """The error where a package that cleaning needs is not there.

    package   as pip names it
    """
    return ModuleNotFoundError(
        f"clean_caption: needs the package {package}; install it with: "
        f"pip install ftfy beautifulsoup4, or turn clean_caption off"
    )
